"""Block boundaries: stored once, and a block applied to its inputs gives its targets."""

from __future__ import annotations

import pytest

from ditquant.artifacts import load_tensors
from ditquant.backend import mx
from ditquant.network.sampling import strided_steps
from ditquant.weights.block_io import BLOCK_IO, read_block
from support.block_data import TEXT_TOKENS, write_block_io
from support.models import build_network


def flux_like(**overrides):
    """Unified blocks, rotary positions and normalised queries and keys, on 64 channels."""
    from diffusionkit.mlx.config import PositionalEncoding

    return build_network(
        depth_unified=2,
        parallel_mlp_for_unified_blocks=True,
        pos_embed_type=PositionalEncoding.PreSDPARope,
        rope_axes_dim=[8, 12, 12],
        use_qk_norm=True,
        patchify_via_reshape=True,
        **overrides,
    )


def models():
    return {
        "sd3": build_network,
        "sd3.5": lambda: build_network(use_qk_norm=True),
        "flux": flux_like,
    }


@pytest.fixture(scope="module", params=["sd3", "sd3.5", "flux"])
def cached(request, tmp_path_factory):
    """A model, its block names, and two block_io files."""
    model = models()[request.param]()
    folder = tmp_path_factory.mktemp(request.param.replace(".", "-"))
    files = [write_block_io(folder / f"{i}.safetensors", model, seed=i) for i in range(2)]
    return model, [block.name for block in model.blocks], files


def test_every_boundary_is_stored_once(cached):
    _, names, files = cached
    expected = {"modulation", "sigmas"}
    for name in names:
        expected |= {f"{name}.uni"} if name.startswith("uni") else {f"{name}.img", f"{name}.txt"}
    expected |= {"out.uni"} if names[-1].startswith("uni") else {"out.img"}
    assert set(load_tensors(files[0], BLOCK_IO)) == expected


def test_a_block_turns_its_inputs_into_its_targets(cached):
    model, names, files = cached
    for block in model.blocks:
        data = read_block(files, names, block.name)
        assert data.rows_per_image == (8, 8)
        for stream in block.streams.values():
            stream.set_modulation(stream.modulation(data.modulation))
        outputs = block(data.inputs, model.positional_encodings(data.latent_size, data.text_tokens))
        assert len(outputs) == len(data.targets)
        for output, target in zip(outputs, data.targets, strict=True):
            # Sixteen rows at once or two: products of another shape add in another order.
            assert mx.allclose(output, target, rtol=1e-4, atol=1e-4), block.name


def test_rows_follow_the_images(cached):
    _, names, files = cached
    both, second = (read_block(some, names, names[0]) for some in (files, files[1:]))
    assert mx.array_equal(both.inputs[0][8:], second.inputs[0])
    assert mx.array_equal(both.modulation[8:], second.modulation)
    assert not mx.array_equal(both.inputs[0][:8], second.inputs[0])


def test_streams_before_a_unified_block_are_text_then_image(tmp_path):
    model = flux_like()
    file = write_block_io(tmp_path / "0.safetensors", model, seed=5)
    data = read_block([file], ["mm00", "mm01", "uni00", "uni01"], "mm01")
    image, text = data.targets
    assert text.shape[1] == TEXT_TOKENS
    joined = load_tensors(file, BLOCK_IO)["uni00.uni"]
    assert mx.array_equal(mx.concatenate([text, image], axis=1), joined)


@pytest.mark.parametrize(
    ("num_steps", "stride", "steps"),
    [(50, 5, list(range(0, 50, 5))), (7, 3, [0, 3, 6]), (4, 4, [0])],
)
def test_cached_steps(num_steps, stride, steps):
    assert strided_steps(num_steps, stride) == steps
