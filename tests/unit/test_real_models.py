"""Published models: a small checkpoint in the real layout, and the real configuration's names."""

from __future__ import annotations

import dataclasses
import importlib
import shutil
from pathlib import Path

import pytest

from ditquant.artifacts import save_tensors
from ditquant.backend import import_diffusionkit, mx
from ditquant.errors import UserError
from ditquant.models.load import load_vae_decoder, load_vae_encoder, mmdit_config
from ditquant.models.spec import PUBLISHED, read_spec
from ditquant.models.text import encode_texts
from ditquant.network.diffusionkit import empty_network, load_network
from support.models import (
    TEXT,
    build_network,
    build_small_sd3,
    parameters,
    small_sd3,
    write_folder,
    write_sd3,
)
from support.small_tables import SD3

ROOT = Path(__file__).parents[2]
PROMPTS = ["a small red star on a navy background", "a large blue ring", ""]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd3")
    return write_sd3(folder / "checkpoint", folder / "hub"), folder / "hub"


@pytest.fixture
def sd3(files, monkeypatch):
    """The specification of SD3-medium, whose files are small ones in the real layout."""
    checkpoint, hub = files
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with small_sd3() as model_io:
        # `hf_hub_download` took its default cache folder when it was imported.
        download = model_io.hf_hub_download
        monkeypatch.setattr(
            model_io, "hf_hub_download", lambda *a, **k: download(*a, cache_dir=str(hub), **k)
        )
        yield read_spec("sd3-medium", str(checkpoint))


def test_local_file_and_offline_cache_load_through_diffusionkits_loaders(sd3):
    model = load_network(sd3, mx.float32)
    expected = parameters(build_small_sd3(0))
    loaded = parameters(model)
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert mx.array_equal(loaded[name], tensor.astype(mx.float16).astype(mx.float32)), name
    image = load_vae_decoder(sd3, mx.float32)(mx.zeros((1, 4, 4, 16)))
    assert image.shape == (1, 32, 32, 3)
    assert load_vae_encoder(sd3, mx.float32)(image).shape == (1, 4, 4, 32)


def test_text_is_encoded_as_diffusionkit_encodes_it(sd3):
    """Both CLIP encoders, zero padding to 4096 channels, zeros in T5's place: same bits."""
    kit = import_diffusionkit()
    pipeline = object.__new__(kit.DiffusionPipeline)
    pipeline.use_t5 = False
    from ditquant.models.load import load_text_encoder

    for letter, encoder in zip("lg", sd3.text.encoders, strict=True):
        model, tokenizer = load_text_encoder(sd3, encoder, mx.float32)
        setattr(pipeline, f"clip_{letter}", model)
        setattr(pipeline, f"tokenizer_{letter}", tokenizer)
    expected, expected_pooled = pipeline.encode_text(PROMPTS[0], cfg_weight=4.0, negative_text="")
    conditioning, pooled = encode_texts(sd3, [PROMPTS[0], ""], mx.float32)
    assert conditioning.shape == (2, 2 * 24, 4096)
    assert mx.array_equal(conditioning, expected)
    assert mx.array_equal(pooled, expected_pooled)


def test_encoding_a_prompt_does_not_depend_on_its_neighbours(sd3):
    together, _ = encode_texts(sd3, PROMPTS, mx.float32)
    alone, _ = encode_texts(sd3, PROMPTS[1:], mx.float32)
    # The same rows through products of another height: float32 rounding only.
    assert mx.allclose(together[1:], alone, rtol=1e-5, atol=1e-5)


def test_real_configuration_has_the_names_and_shapes_that_the_tracks_touch():
    spec = PUBLISHED["sd3-medium"]
    config = mmdit_config(spec)
    assert (config.depth_multimodal, config.depth_unified) == (24, 0)
    model = empty_network(spec)
    blocks = model.blocks
    assert [block.name for block in blocks] == spec.block_names
    linears = {linear.name: linear for linear in model.linears}
    assert len(linears) == 285
    shapes = {name: tensor.shape for name, tensor in parameters(model).items()}
    width = 1536
    outputs = {"fc1": (4 * width, width), "fc2": (width, 4 * width)}
    for name, linear in linears.items():
        expected = outputs.get(linear.attribute, (width, width))
        assert shapes[f"{linear.path}.weight"] == expected, name
        assert (f"{linear.path}.bias" in shapes) == (linear.attribute != "k_proj"), name
    last = {name for name in linears if name.startswith("mm23.txt")}
    assert last == {f"mm23.txt.attn.{part}_proj" for part in "qkv"}
    assert len(blocks[22].linears) == 12
    given = [linear.module.weight.shape[0] for linear in model.other_linears("blocks+adaln")]
    modulations = sorted(given, reverse=True)
    assert len(modulations) == 49
    assert modulations == [6 * width] * 47 + [2 * width] * 2


def test_unified_blocks_and_qk_norm_are_walked():
    model = build_network(depth_unified=2, use_qk_norm=True, depth_multimodal=2)
    blocks = model.blocks
    assert [block.name for block in blocks] == ["mm00", "mm01", "uni00", "uni01"]
    names = [linear.name for linear in blocks[-1].linears]
    projections = [f"uni01.attn.{part}_proj" for part in "qkvo"]
    assert names == [*projections, "uni01.mlp.fc1", "uni01.mlp.fc2"]
    assert len(model.linears) == 2 * 12 + 2 * 6  # with unified blocks no stream is dropped
    for linear in model.linears:
        module = model.module
        for part in linear.path.split("."):
            module = module[int(part)] if part.isdigit() else getattr(module, part)
        assert module is linear.module


def test_published_depths_are_diffusionkits():
    for spec in PUBLISHED.values():
        config = mmdit_config(spec)
        assert (spec.shape.depth_multimodal, spec.shape.depth_unified) == (
            config.depth_multimodal,
            config.depth_unified,
        )


def test_loading_leaves_diffusionkits_tables_as_they_were(sd3):
    model_io = importlib.import_module("diffusionkit.mlx.model_io")
    before = {name: dict(getattr(model_io, name)) for name in ("_MMDIT", "_CONFIG", "_PREFIX")}
    config = dataclasses.replace(model_io._CONFIG[SD3])
    load_network(sd3, mx.float32)
    assert {name: getattr(model_io, name) for name in before} == before
    assert model_io._CONFIG[SD3] == config
    assert TEXT in model_io._MODELS


# ------------------------------------------------------------------------------- bad files


def test_truncated_checkpoint_is_named(sd3, tmp_path):
    short = tmp_path / "sd3_medium.safetensors"
    shutil.copy(sd3.checkpoint, short)
    with short.open("r+b") as file:
        file.truncate(short.stat().st_size - 1000)
    with pytest.raises(UserError, match="truncated"):
        load_network(dataclasses.replace(sd3, checkpoint=short), mx.float32)


def test_foreign_checkpoint_is_named(sd3, tmp_path):
    foreign = tmp_path / "foreign.safetensors"
    save_tensors(foreign, {"layers.0.weight": mx.zeros((4, 4))}, "ditquant.model_weights")
    with pytest.raises(UserError, match=r"foreign\.safetensors is no checkpoint of sd3-medium"):
        load_network(dataclasses.replace(sd3, checkpoint=foreign), mx.float32)


def test_checkpoint_of_another_size_is_named(sd3, tmp_path):
    other = write_folder(tmp_path / "other") / "tiny.safetensors"
    with pytest.raises(UserError, match="is no checkpoint of sd3-medium"):
        load_network(dataclasses.replace(sd3, checkpoint=other), mx.float32)


def test_a_page_instead_of_a_checkpoint_is_named(sd3, tmp_path):
    page = tmp_path / "sd3_medium.safetensors"
    page.write_text("<html>Access to this model is restricted</html>")
    with pytest.raises(UserError, match="truncated or no safetensors"):
        load_network(dataclasses.replace(sd3, checkpoint=page), mx.float32)


def test_gated_model_says_how_to_log_in(sd3, monkeypatch):
    errors = importlib.import_module("huggingface_hub.errors")
    model_io = importlib.import_module("diffusionkit.mlx.model_io")

    def refuse(*args, **options):
        error = errors.GatedRepoError.__new__(errors.GatedRepoError)
        error.args = ("401 Client Error: access to model is restricted",)
        raise error

    monkeypatch.setattr(model_io, "hf_hub_download", refuse)
    with pytest.raises(UserError, match=r"gated: accept its licence .*hf auth login"):
        load_network(dataclasses.replace(sd3, checkpoint=None), mx.float32)


def test_offline_without_the_file_says_so(sd3):
    with pytest.raises(UserError, match="not in the local cache"):
        load_network(dataclasses.replace(sd3, checkpoint=None), mx.float32)


def test_float16_load_gives_the_files_bits(sd3):
    model = load_network(sd3, mx.float16)
    stored = mx.load(str(sd3.checkpoint))
    weight = stored["model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight"]
    assert mx.array_equal(
        model.module.multimodal_transformer_blocks[0].image_transformer_block.mlp.fc1.weight, weight
    )
