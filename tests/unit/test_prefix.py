"""Streams behind a quantized block: those of the block with its dequantized weights."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ditquant.artifacts import save_tensors
from ditquant.backend import mx
from ditquant.weights.block_io import read_block
from ditquant.weights.grids import Grid, fit_scales, fractional_codes, nearest_codes, pack
from ditquant.weights.prefix import prefix_streams, streams_after
from support.models import build_network
from support.problems import behind_noise, write_images


def flux_like():
    from diffusionkit.mlx.config import PositionalEncoding

    return build_network(
        depth_unified=2,
        pos_embed_type=PositionalEncoding.PreSDPARope,
        rope_axes_dim=[8, 12, 12],
        use_qk_norm=True,
        patchify_via_reshape=True,
    )


def packed_linears(model, block):
    own = model.block(block)
    packed = {}
    for linear in own.linears:
        weight = linear.module.weight
        scales = fit_scales(weight, Grid("group", 3, 32), linear.name)
        packed[linear.name] = pack(nearest_codes(fractional_codes(weight, scales), 8), scales)
    return packed


def by_hand(model, block, data, packed):
    """The block's outputs row by row, its weights dequantized by MLX itself."""
    own = model.block(block)
    for linear in own.linears:
        one = packed[linear.name]
        linear.module.weight = mx.dequantize(
            one.weight, one.scales, one.biases, one.group_size, one.bits
        ).astype(mx.float32)
    positions = model.positional_encodings(data.latent_size, data.text_tokens)
    rows = []
    for row in range(len(data.modulation)):
        for stream in own.streams.values():
            stream.set_modulation(stream.modulation(data.modulation[row : row + 1]))
        streams = [stream[row : row + 1] for stream in data.entering]
        rows.append(own(streams, positions))
        mx.eval(rows[-1])
    return [mx.concatenate(column) for column in zip(*rows, strict=True)]


def near(one, other):
    # float32 sums over batches of another size.
    return mx.allclose(one, other, rtol=1e-4, atol=1e-4 * mx.max(mx.abs(other)).item()).item()


@pytest.mark.parametrize("noisy", [False, True])
def test_streams_are_those_of_the_dequantized_block(tmp_path, noisy):
    model = build_network(seed=4)
    data = read_block(write_images(tmp_path, model, 3), ["mm00", "mm01"], "mm00")
    data = behind_noise(data) if noisy else data
    packed = packed_linears(model, "mm00")
    streams = streams_after(model, "mm00", "mm01", data, packed, {})
    image, text = by_hand(build_network(seed=4), "mm00", data, packed)
    assert near(streams[0], image)
    assert near(streams[1], text)
    # Three bits are seen: the streams are not those of the full-precision block.
    assert not near(streams[0], data.targets[0])


def write_weights(path, packed):
    """A file of `optimize_block`, as far as it is read here."""
    tensors = {}
    for name, one in packed.items():
        tensors |= {f"{name}.{part}": getattr(one, part) for part in ("weight", "scales", "biases")}
    sizes = {name: {"bits": 3, "group_size": 32} for name in packed}
    save_tensors(path, tensors, "ditquant.block_weights", {"quantization": sizes})
    return path


def test_the_last_block_reads_what_all_before_it_give(tmp_path):
    names = ["mm00", "mm01", "mm02"]
    model = build_network(seed=4, depth_multimodal=3)
    files = write_images(tmp_path, model, 2)
    packed = [packed_linears(model, name) for name in names[:2]]
    weights = [write_weights(tmp_path / f"w{n}.safetensors", one) for n, one in enumerate(packed)]
    prefix = prefix_streams(model, names, files, weights)
    following = read_block(files, names, "mm02", prefix)
    assert following.entering is prefix
    assert not near(prefix[0], following.inputs[0])

    fresh = build_network(seed=4, depth_multimodal=3)
    data = read_block(files, names, "mm00")
    first = by_hand(fresh, "mm00", data, packed[0])
    second = by_hand(fresh, "mm01", replace(data, prefix=tuple(first)), packed[1])
    for own, expected in zip(prefix, second, strict=True):
        assert near(own, expected)


def test_a_block_with_full_weights_gives_what_was_stored(tmp_path):
    model = build_network(seed=4)
    data = read_block(write_images(tmp_path, model, 3), ["mm00", "mm01"], "mm00")
    streams = streams_after(model, "mm00", "mm01", data, {}, {})
    assert near(streams[0], data.targets[0])
    assert near(streams[1], data.targets[1])


def test_parameters_that_balancing_changed_are_read(tmp_path):
    model = build_network(seed=4)
    data = read_block(write_images(tmp_path, model, 2), ["mm00", "mm01"], "mm00")
    path = "multimodal_transformer_blocks.0.image_transformer_block.mlp.fc2.bias"
    bias = model.module.multimodal_transformer_blocks[0].image_transformer_block.mlp.fc2.bias
    plain = streams_after(model, "mm00", "mm01", data, {}, {})
    moved = streams_after(model, "mm00", "mm01", data, {}, {path: bias + 1.0})
    (block, _) = model.blocks
    gate = block.streams["img"].modulation(data.modulation)[..., -64:]
    assert near(moved[0] - plain[0], mx.broadcast_to(gate, plain[0].shape))
    assert near(moved[1], plain[1])


def test_text_goes_before_the_image_into_a_unified_block(tmp_path):
    model = flux_like()
    names = [block.name for block in model.blocks]
    files = write_images(tmp_path, model, 2)
    data = read_block(files, names, "mm01")
    streams = streams_after(model, "mm01", "uni00", data, {}, {})
    image, text = data.targets
    assert len(streams) == 1
    assert near(streams[0], mx.concatenate([text, image], axis=1))
    joined = read_block(files, names, "uni00")
    after = streams_after(model, "uni00", "uni01", joined, {}, {})
    assert near(after[0], joined.targets[0])
