"""A block's packed weights are unpacked together, for as long as the block computes."""

from __future__ import annotations

import gc

import pytest
from mlx.utils import tree_flatten

from ditquant.backend import backend_name, mx, nn
from ditquant.checkpoints import packed_blocks
from ditquant.checkpoints.packed_blocks import blocks_unpacked
from ditquant.checkpoints.quantized import PackedLinear, unpack
from ditquant.kernels.cuda.unpacking import can_unpack, unpack_parts
from ditquant.models.spec import read_spec
from ditquant.network.blocks import set_linear
from ditquant.network.diffusionkit import load_network
from ditquant.weights.grids import Grid, round_to_nearest
from support.models import write_folder

# Of one block: two kinds, and a layer that is not quantized.
BITS = {"fc1": 8, "fc2": 3, "o_proj": None}


@pytest.fixture
def network(tmp_path):
    network = load_network(read_spec("local", str(write_folder(tmp_path))), mx.float32)
    for linear in network.linears:
        bits = BITS.get(linear.attribute, 4)
        if bits is not None:
            packed = round_to_nearest(linear.module.weight, Grid("group", bits, 32))
            set_linear(linear, PackedLinear(packed, linear.module.get("bias")))
    network.modulate(mx.random.normal((2, 1, 1, 64), key=mx.random.key(1)))
    mx.eval(network.module.parameters())
    return network


def inputs(dtype):
    latents, tokens = mx.random.split(mx.random.key(2))
    parts = [
        mx.random.normal((2, 8, 8, 16), key=latents),
        mx.random.normal((2, 40, 32), key=tokens),
    ]
    return [part.astype(dtype) for part in parts]


def output(network, dtype=mx.float32):
    return network.forward(*inputs(dtype))


@pytest.mark.skipif(backend_name() == "metal", reason="Metal's kernels read packed weights")
def test_a_pass_computes_the_same_and_unpacks_once_a_block_and_kind(network, monkeypatch):
    before = output(network)
    unpacked = []
    monkeypatch.setattr(
        packed_blocks, "unpack", lambda packed: unpacked.append(packed.bits) or unpack(packed)
    )
    with blocks_unpacked(network):
        together = output(network)
        mx.eval(together)
    # The same products of the same values; only few rows take MLX's kernel without it.
    assert mx.allclose(together, before, rtol=1e-4, atol=1e-4)
    if backend_name() == "cpu":
        assert sorted(unpacked) == sorted([4, 8, 3] * len(network.blocks))


def test_the_layers_are_left_as_they_were(network):
    names = dict(tree_flatten(network.module.parameters()))
    before = {name: mx.array(array) for name, array in names.items()}
    modules = [linear.module for linear in network.linears]
    blocks = list(network.module.multimodal_transformer_blocks)
    with pytest.raises(RuntimeError, match="inside"), blocks_unpacked(network):
        raise RuntimeError("inside")
    after = network.module.multimodal_transformer_blocks
    assert all(a is b for a, b in zip(blocks, after, strict=True))
    assert all(
        linear.module is module for linear, module in zip(network.linears, modules, strict=True)
    )
    after = dict(tree_flatten(network.module.parameters()))
    assert list(after) == list(names)
    assert all(mx.array_equal(after[name], array) for name, array in before.items())
    # A second time, on what now are views.
    with blocks_unpacked(network):
        mx.eval(output(network))


@pytest.mark.skipif(backend_name() == "metal", reason="Metal's kernels read packed weights")
def test_nothing_unpacked_stays(network):
    with blocks_unpacked(network):
        mx.eval(output(network))
        gc.collect()
        layers = [linear.module for linear in network.linears]
        sizes = [layer.weight.size for layer in layers if type(layer) is nn.Linear]
        # Those that were never packed have weights.
        kept = [linear for linear in network.linears if linear.attribute == "o_proj"]
        assert sum(size > 1 for size in sizes) == len(kept)


def test_a_block_may_fail_and_forgets_its_weights(network):
    with blocks_unpacked(network):
        block = network.blocks[0]
        with pytest.raises(ValueError, match=r"\[.*\]"):
            mx.eval(block([mx.zeros((1, 4, 1, 7)), mx.zeros((1, 4, 1, 7))]))
        if backend_name() != "metal":
            linears = [one for one in network.linears if one.attribute == "q_proj"]
            assert all(one.module.weight.size == 1 for one in linears)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_streams_keep_their_dtype(network, dtype):
    network.module.apply(lambda array: array.astype(dtype) if array.dtype == mx.float32 else array)
    network.modulate(mx.random.normal((2, 1, 1, 64), key=mx.random.key(1)).astype(dtype))
    with blocks_unpacked(network):
        result = output(network, dtype)
    assert result.dtype == dtype
    assert mx.isfinite(result).all()


def test_words_hold_whole_codes():
    assert [bits for bits in (2, 3, 4, 6, 8) if can_unpack(bits)] == [2, 4, 8]


@pytest.mark.skipif(backend_name() != "cuda", reason="needs CUDA")
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_cuda_kernel_has_the_values_of_mlx(bits):
    weights = [mx.random.normal(shape) for shape in ((64, 128), (32, 64), (64, 64))]
    packed = [round_to_nearest(weight, Grid("group", bits, 64)) for weight in weights]
    words = 64 * bits // 32
    joint = type(packed[0])(
        mx.concatenate([one.weight.reshape(-1, words) for one in packed]),
        mx.concatenate([one.scales.reshape(-1, 1) for one in packed]),
        mx.concatenate([one.biases.reshape(-1, 1) for one in packed]),
        bits,
        64,
    )
    ends = [128, 160, 224]
    shapes = [weight.shape for weight in weights]
    for one, values in zip(packed, unpack_parts(joint, ends, shapes, mx.float16), strict=True):
        assert mx.allclose(values, unpack(one), rtol=2.0**-10, atol=2.0**-14)
