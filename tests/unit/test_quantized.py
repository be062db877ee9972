"""Packed layers compute what their values say, by either way."""

from __future__ import annotations

import pytest

from ditquant.backend import backend_name, mx, nn, to_numpy
from ditquant.checkpoints import quantized
from ditquant.checkpoints.quantized import (
    KERNEL_ROWS,
    PackedLinear,
    dequantized_product,
    kernel_product,
    packed_product,
)
from ditquant.weights.grids import Grid, Packed, dequantize, round_to_nearest
from support.models import parameters

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
