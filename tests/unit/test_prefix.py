"""Streams behind a quantized block: those of the block with its dequantized weights."""

from __future__ import annotations

import pytest

from ditquant.backend import mx
from ditquant.block_io import positional_encodings, read_block
from ditquant.blocks import call_block, set_modulation, walk_blocks, walk_linears
from ditquant.grids import Grid, fit_scales, pack, steps_of
from ditquant.prefix import streams_after
from ditquant.rounding import nearest_codes
from support.models import build_mmdit
from support.problems import behind_noise, write_images


def flux_like():
    from diffusionkit.mlx.config import PositionalEncoding

    return build_mmdit(
        depth_unified=2,
        pos_embed_type=PositionalEncoding.PreSDPARope,
        rope_axes_dim=[8, 12, 12],
        use_qk_norm=True,
        patchify_via_reshape=True,
    )


def packed_linears(model, block):
    own = next(one for one in walk_blocks(model) if one.name == block)
    packed = {}
    for linear in walk_linears(own):
        weight = linear.module.weight
        scales = fit_scales(weight, Grid("group", 3, 32), linear.name)
        packed[linear.name] = pack(nearest_codes(steps_of(weight, scales), 8), scales)
    return packed


def by_hand(model, block, data, packed):
    """The block's outputs row by row, its weights dequantized by MLX itself."""
    own = next(one for one in walk_blocks(model) if one.name == block)
    for linear in walk_linears(own):
        one = packed[linear.name]
        linear.module.weight = mx.dequantize(
            one.weight, one.scales, one.biases, one.group_size, one.bits
        ).astype(mx.float32)
    positions = positional_encodings(model, data)
    rows = []
    for row in range(len(data.modulation)):
        for stream in own.streams.values():
            set_modulation(stream, stream.adaLN_modulation(data.modulation[row : row + 1]))
        streams = [stream[row : row + 1] for stream in data.entering]
        rows.append(call_block(own, streams, positions))
        mx.eval(rows[-1])
    return [mx.concatenate(column) for column in zip(*rows, strict=True)]


def near(one, other):
    # float32 sums over batches of another size.
    return mx.allclose(one, other, rtol=1e-4, atol=1e-4 * mx.max(mx.abs(other)).item()).item()


@pytest.mark.parametrize("noisy", [False, True])
def test_streams_are_those_of_the_dequantized_block(tmp_path, noisy):
    model = build_mmdit(seed=4)
    data = read_block(write_images(tmp_path, model, 3), ["mm00", "mm01"], "mm00")
    data = behind_noise(data) if noisy else data
    packed = packed_linears(model, "mm00")
    streams = streams_after(model, "mm00", "mm01", data, packed, {})
    image, text = by_hand(build_mmdit(seed=4), "mm00", data, packed)
    assert list(streams) == ["img", "txt"]
    assert near(streams["img"], image)
    assert near(streams["txt"], text)
    # Three bits are seen: the streams are not those of the full-precision block.
    assert not near(streams["img"], data.targets[0])


def test_the_next_block_reads_them_as_its_prefix(tmp_path):
    from ditquant.artifacts import save_tensors

    model = build_mmdit(seed=4)
    files = write_images(tmp_path, model, 2)
    data = read_block(files, ["mm00", "mm01"], "mm00")
    streams = streams_after(model, "mm00", "mm01", data, packed_linears(model, "mm00"), {})
    save_tensors(tmp_path / "prefix.safetensors", streams, {"block": "mm01"})
    following = read_block(files, ["mm00", "mm01"], "mm01", tmp_path / "prefix.safetensors")
    for entering, expected in zip(following.entering, streams.values(), strict=True):
        assert mx.array_equal(entering, expected)
    for own, target in zip(following.inputs, data.targets, strict=True):
        assert mx.array_equal(own, target)


def test_a_block_with_full_weights_gives_what_was_stored(tmp_path):
    model = build_mmdit(seed=4)
    data = read_block(write_images(tmp_path, model, 3), ["mm00", "mm01"], "mm00")
    streams = streams_after(model, "mm00", "mm01", data, {}, {})
    assert near(streams["img"], data.targets[0])
    assert near(streams["txt"], data.targets[1])


def test_parameters_that_balancing_changed_are_read(tmp_path):
    model = build_mmdit(seed=4)
    data = read_block(write_images(tmp_path, model, 2), ["mm00", "mm01"], "mm00")
    path = "multimodal_transformer_blocks.0.image_transformer_block.mlp.fc2.bias"
    bias = model.multimodal_transformer_blocks[0].image_transformer_block.mlp.fc2.bias
    plain = streams_after(model, "mm00", "mm01", data, {}, {})
    moved = streams_after(model, "mm00", "mm01", data, {}, {path: bias + 1.0})
    (block, _) = walk_blocks(model)
    gate = block.streams["img"].adaLN_modulation(data.modulation)[..., -64:]
    assert near(moved["img"] - plain["img"], mx.broadcast_to(gate, plain["img"].shape))
    assert near(moved["txt"], plain["txt"])


def test_text_goes_before_the_image_into_a_unified_block(tmp_path):
    model = flux_like()
    names = [block.name for block in walk_blocks(model)]
    files = write_images(tmp_path, model, 2)
    data = read_block(files, names, "mm01")
    streams = streams_after(model, "mm01", "uni00", data, {}, {})
    image, text = data.targets
    assert list(streams) == ["uni"]
    assert near(streams["uni"], mx.concatenate([text, image], axis=1))
    joined = read_block(files, names, "uni00")
    after = streams_after(model, "uni00", "uni01", joined, {}, {})
    assert near(after["uni"], joined.targets[0])
