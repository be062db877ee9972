"""Packed layers compute what their values say, by either way, alone or joined."""

from __future__ import annotations

import gc

import pytest

from ditquant import quantized
from ditquant.backend import backend_name, mx, nn, to_numpy
from ditquant.blocks import all_linears, set_linear
from ditquant.grids import Grid, Packed, dequantize
from ditquant.other_linears import round_to_nearest
from ditquant.quantized import (
    KERNEL_ROWS,
    PackedLinear,
    dequantized_product,
    join_projections,
    kernel_product,
    packed_product,
)
from support.models import build_mmdit, parameters

INPUTS, OUTPUTS = 128, 48
UNIT = {mx.float32: 2.0**-24, mx.float16: 2.0**-11, mx.bfloat16: 2.0**-8}


def packed_weight(bits: int, seed: int = 1) -> Packed:
    weight = mx.random.normal((OUTPUTS, INPUTS), key=mx.random.key(seed))
    return round_to_nearest(weight, Grid("group", bits, 64))


def tolerance(x: mx.array, packed: Packed, dtype: mx.Dtype) -> mx.array:
    """Two sums of n products in any order differ by at most 2 n u / (1 - n u) of their magnitudes.

    n counts the products and the bias, u is the unit roundoff. Values of 8 bits are themselves
    rounded to float16, twice, by one of the two ways.
    """
    u, n = UNIT[dtype], INPUTS + 2
    magnitudes = mx.abs(x.astype(mx.float32)) @ mx.abs(dequantize(packed)).T + 1.0
    share = min(2 * n * u / (1 - n * u), 1.0) if n * u < 1 else 1.0
    stored = 2 * UNIT[mx.float16] * 255 * mx.abs(packed.scales.astype(mx.float32)).max()
    extra = mx.abs(x.astype(mx.float32)).sum(-1, keepdims=True) * stored if packed.bits == 8 else 0
    return share * magnitudes + extra


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("rows", [1, 2, 40])
def test_both_ways_agree_with_the_values(bits, rows):
    packed = packed_weight(bits)
    x = mx.random.normal((rows, INPUTS), key=mx.random.key(2))
    bias = mx.random.normal((OUTPUTS,), key=mx.random.key(3))
    # float64 on the host: no rounding that counts.
    exact = to_numpy(x).astype("float64") @ to_numpy(dequantize(packed)).astype("float64").T
    exact = exact + to_numpy(bias)
    bound = to_numpy(tolerance(x, packed, mx.float32))
    for way in (kernel_product, dequantized_product, packed_product):
        y = way(x, packed, bias)
        assert (abs(to_numpy(y) - exact) <= bound).all(), way.__name__
        without = to_numpy(way(x, packed, None))
        assert (abs(without + to_numpy(bias) - exact) <= bound).all(), way.__name__


def test_a_few_rows_take_the_kernel_and_many_are_dequantized(monkeypatch):
    used = []
    monkeypatch.setattr(quantized, "kernel_product", lambda *a: used.append("kernel"))
    monkeypatch.setattr(quantized, "dequantized_product", lambda *a: used.append("dequantized"))
    monkeypatch.setitem(KERNEL_ROWS, (backend_name(), "float32"), 4)
    monkeypatch.setitem(KERNEL_ROWS, (backend_name(), "half"), 0)
    for rows in (4, 5):
        packed_product(mx.zeros((rows, INPUTS)), packed_weight(4))
    packed_product(mx.zeros((1, INPUTS), dtype=mx.float16), packed_weight(4))
    assert used == ["kernel", "dequantized", "dequantized"]


def test_every_backend_has_its_row_in_the_table():
    assert {backend for backend, _ in KERNEL_ROWS} == {"cpu", "cuda", "metal"}
    assert {kind for _, kind in KERNEL_ROWS} == {"float32", "half"}
    assert backend_name() in {"cpu", "cuda", "metal"}


@pytest.mark.parametrize("dtype", UNIT)
@pytest.mark.parametrize("shape", [(2, 5, 1), (1, 3, 1), (2,), ()])
def test_a_layer_keeps_shape_and_dtype_of_a_stream(dtype, shape):
    layer = PackedLinear(packed_weight(4), mx.zeros(OUTPUTS, dtype))
    y = layer(mx.ones((*shape, INPUTS), dtype=dtype))
    assert y.shape == (*shape, OUTPUTS)
    assert y.dtype == dtype


def test_a_layer_has_the_parameters_of_mlx(tmp_path):
    layer = PackedLinear(packed_weight(4), mx.zeros(OUTPUTS))
    stock = nn.QuantizedLinear(INPUTS, OUTPUTS, True, 64, 4)
    assert parameters(layer).keys() == parameters(stock).keys()
    assert layer.trainable_parameters() == {}


def packed_model(joined: bool, **options) -> nn.Module:
    model = build_mmdit(seed=0, **options)
    for linear in all_linears(model):
        packed = round_to_nearest(linear.module.weight, Grid("group", 4, 32))
        set_linear(linear, PackedLinear(packed, linear.module.get("bias")))
    if joined:
        join_projections(model)
    return model


def test_joined_projections_compute_the_same():
    alone, together = packed_model(False), packed_model(True)
    x = mx.random.normal((2, 9, 1, 64), key=mx.random.key(5))
    for one, other in zip(all_linears(alone), all_linears(together), strict=True):
        columns = one.module.packed.num_weights // one.module.scales.shape[0]
        rows = mx.tile(x, (1, 1, 1, columns // 64))
        bound = tolerance(rows, one.module.packed, mx.float32)
        assert mx.all(mx.abs(one.module(rows) - other.module(rows)) <= bound), one.name


def test_joined_projections_compute_one_product_for_a_stream():
    calls = []

    def counting(x, packed, bias):
        calls.append(packed.weight.shape[0])
        return packed_product(x, packed, bias)

    model = packed_model(False)
    join_projections(model, counting)
    attention = model.multimodal_transformer_blocks[0].image_transformer_block.attn
    first, second = (mx.random.normal((1, 4, 1, 64), key=mx.random.key(n)) for n in (6, 7))
    for x in (first, second):
        for layer in (attention.q_proj, attention.k_proj, attention.v_proj):
            layer(x)
    assert calls == [3 * 64, 3 * 64]


def test_joined_projections_survive_any_order_of_calls():
    """Different arrays for each projection, as simulated activations give, and repeated calls."""
    attention = packed_model(True).multimodal_transformer_blocks[0].image_transformer_block.attn
    alone = packed_model(False).multimodal_transformer_blocks[0].image_transformer_block.attn
    arrays = [mx.random.normal((1, 4, 1, 64), key=mx.random.key(n)) for n in range(3)]
    for name, x in [("q", 0), ("k", 1), ("k", 1), ("q", 1), ("v", 2), ("v", 0), ("q", 0)]:
        y = getattr(attention, f"{name}_proj")(arrays[x])
        expected = getattr(alone, f"{name}_proj")(arrays[x])
        assert mx.allclose(y, expected, rtol=1e-5, atol=1e-5), (name, x)


def held_bytes(joined: bool) -> int:
    """What a packed model holds after every layer has run once."""
    mx.clear_cache()
    before = mx.get_active_memory()
    model = packed_model(joined, hidden_size=256)
    for linear in all_linears(model):
        inputs = linear.module.packed.num_weights // linear.module.scales.shape[0]
        mx.eval(linear.module(mx.zeros((1, inputs))))
    mx.eval(model.parameters())
    gc.collect()
    mx.clear_cache()
    return mx.get_active_memory() - before


def test_joining_holds_the_weights_once():
    # A second copy would take 3 x 256 x 256 weights at 5 bits, 120 KiB, for each of the 4 streams.
    # Joined biases and outputs that wait for their caller are single rows of 3 x 256 numbers.
    assert held_bytes(True) <= held_bytes(False) + 4 * 2**14
    assert parameters(packed_model(True)).keys() == parameters(packed_model(False)).keys()


def test_projections_of_different_sizes_stay_alone():
    model = build_mmdit(seed=0)
    for linear in all_linears(model):
        bits = 8 if linear.attribute == "v_proj" else 4
        packed = round_to_nearest(linear.module.weight, Grid("group", bits, 32))
        set_linear(linear, PackedLinear(packed, linear.module.get("bias")))
    join_projections(model)
    assert all(linear.module._joined is None for linear in all_linears(model))


def test_unified_blocks_are_joined_too():
    model = packed_model(True, depth_unified=1)
    attention = model.unified_transformer_blocks[0].transformer_block.attn
    assert attention.q_proj._joined is not None
