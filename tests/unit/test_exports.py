"""Exports load with DiffusionKit's own loaders, and every tensor is the checkpoint's."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
from functools import partial

import pytest
from mlx.utils import tree_flatten

import assemble_weights
import export_weights
from ditquant.artifacts import load_metadata, load_tensors, read_json, save_tensors, write_json
from ditquant.backend import import_diffusionkit, mx
from ditquant.checkpoints.checkpoint import load_quantized
from ditquant.checkpoints.exports import EXPORTS, KIND, export_checkpoint
from ditquant.errors import UserError
from ditquant.models.load import load_vae_decoder, load_vae_encoder, mmdit_config
from ditquant.models.spec import Model, read_spec
from ditquant.network.diffusionkit import DiffusionKitNetwork, load_network
from ditquant.network.sampling import predict
from ditquant.weights.grids import Grid, dequantize, round_to_nearest
from support.models import build_network, parameters, write_folder
from support.problems import whole_recipe
from support.small_tables import VAE

FOUR_BIT = "argmaxinc/mlx-stable-diffusion-3.5-large-4bit-quantized"
MEDIUM = "argmaxinc/mlx-stable-diffusion-3-medium"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder whose widths are all multiples of 64, as those of the published models are."""
    folder = tmp_path_factory.mktemp("model")
    write_folder(folder, pooled_text_embed_dim=64, token_level_text_embed_dim=128)
    return {"name": "local", "checkpoint": str(folder), "dtype": "float32"}


@pytest.fixture(scope="module")
def spec(model):
    return read_spec(model["name"], model["checkpoint"])


def write_blocks(spec, path, grid: Grid) -> None:
    """The file of `optimize_block`, for all blocks at once."""
    tensors, sizes = {}, {}
    for linear in load_network(spec, mx.float32).linears:
        packed = round_to_nearest(linear.module.weight, grid, linear.name)
        for part in ("weight", "scales", "biases"):
            tensors[f"{linear.name}.{part}"] = getattr(packed, part)
        sizes[linear.name] = {"bits": packed.bits, "group_size": packed.group_size}
    save_tensors(path, tensors, "ditquant.block_weights", {"quantization": sizes})


def assemble(spec, model, folder, quantize="blocks", results=(), **options):
    """A native checkpoint by the rule's own script."""
    recipe = whole_recipe("rtn", quantize=quantize, **options)
    grid = Grid(recipe.grid, recipe.bits, recipe.group_size)
    write_blocks(spec, folder / "blocks.safetensors", grid)
    config, weights = folder / "model" / "config.json", folder / "model" / "model.safetensors"
    assemble_weights.main(
        blocks=[str(folder / "blocks.safetensors")], config=str(config), output=str(weights),
        model=model, name="rtn", recipe=recipe.params(), results=list(map(str, results)),
    )  # fmt: skip
    return config


def test_a_checkpoint_names_the_blocks_whose_learning_diverged(spec, model, tmp_path):
    results = [tmp_path / f"{block}.json" for block in spec.block_names]
    for path, diverged in zip(results, (None, {"reason": "NaN", "advice": "less"}), strict=True):
        write_json(path, "ditquant.block_result", {"block": path.stem, "diverged": diverged})
    config = assemble(spec, model, tmp_path, results=results)
    assert read_json(config, "ditquant.checkpoint")["diverged"] == [spec.block_names[1]]
    assert "diverged" not in read_json(
        assemble(spec, model, tmp_path, results=results[:1]), "ditquant.checkpoint"
    )


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, spec, model):
    """Scope of the recipe -> config.json of its checkpoint."""
    return {
        scope: assemble(spec, model, tmp_path_factory.mktemp("weights"), scope)
        for scope in ("blocks", "blocks+adaln", "all")
    }


@pytest.fixture
def stock(spec, tmp_path, monkeypatch):
    """Loads a file with DiffusionKit's loaders: (key, file) -> MMDiT, VAE encoder, VAE decoder.

    The loaders are as they are. Their tables get the small model's sizes, and the file lies in an
    offline hub cache under the name that the key's repository has for it.
    """
    import_diffusionkit()
    model_io = importlib.import_module("diffusionkit.mlx.model_io")
    hub = tmp_path / "hub"
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    # `hf_hub_download` took its default cache folder when it was imported.
    download = partial(model_io.hf_hub_download, cache_dir=str(hub))
    monkeypatch.setattr(model_io, "hf_hub_download", download)
    for name in ("Encoder", "Decoder"):
        sizes = partial(getattr(model_io, f"VAE{name}Config"), **VAE[name.lower()])
        monkeypatch.setattr(model_io, f"VAE{name}Config", sizes)

    def load(key, file):
        monkeypatch.setitem(model_io._CONFIG, key, mmdit_config(spec))
        repository = hub / f"models--{key.replace('/', '--')}"
        snapshot = repository / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0" * 40)
        (snapshot / "config.json").write_text("{}")
        shutil.copy(file, snapshot / model_io._MMDIT[key][key])
        mmdit = model_io.load_mmdit(key=key, model_key=key, low_memory_mode=False)
        encoder, decoder = model_io.load_vae_encoder(key=key), model_io.load_vae_decoder(key=key)
        return DiffusionKitNetwork(mmdit), encoder, decoder

    return load


def export(config, model, tmp_path, name):
    path = tmp_path / f"{name}.safetensors"
    export_weights.main(
        config=str(config), weights=str(path), model=Model.from_params(model), export=name
    )
    return path


def assert_same(module, expected) -> None:
    """Every tensor, bit for bit; loaders cast to float32, which changes no float16 value."""
    found = parameters(module)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        other = tensor if tensor.dtype == mx.uint32 else tensor.astype(mx.float32)
        assert found[name].dtype == other.dtype, name
        assert mx.array_equal(found[name], other), name


def values_of_stock(layer) -> mx.array:
    """What DiffusionKit's layer multiplies with, in float32."""
    return mx.dequantize(layer.weight, layer.scales, layer.biases, layer.group_size, layer.bits)


def test_fp16_export_is_the_checkpoint_dequantized(stock, spec, model, checkpoints, tmp_path):
    for scope, config in checkpoints.items():
        folder = tmp_path / scope
        folder.mkdir()
        path = export(config, model, folder, "diffusionkit-fp16")
        assert {tensor.dtype for tensor in load_tensors(path, KIND).values()} == {mx.float16}
        metadata = load_metadata(path, KIND)
        assert json.loads(metadata["rerounded"]) == json.loads(metadata["inexact"]) == []
        if scope == "all":
            mmdit, encoder, decoder = stock(MEDIUM, path)
            assert_same(mmdit, parameters(load_quantized(spec, config.parent, mx.float16)))
            assert_same(encoder, parameters(load_vae_encoder(spec, mx.float32)))
            assert_same(decoder, parameters(load_vae_decoder(spec, mx.float32)))


@pytest.mark.parametrize("scope", ["blocks", "blocks+adaln", "all"])
def test_4bit_export_has_the_codes_of_the_checkpoint(
    stock, spec, model, checkpoints, tmp_path, scope
):
    config = checkpoints[scope]
    path = export(config, model, tmp_path, "diffusionkit-4bit")
    mmdit, encoder, decoder = stock(FOUR_BIT, path)
    native = load_tensors(config.parent / "model.safetensors", "ditquant.checkpoint_weights")
    values = parameters(load_quantized(spec, config.parent, mx.float32))
    learned = {linear.path for linear in build_network().linears}
    rerounded = json.loads(load_metadata(path, KIND)["rerounded"])
    linears = {linear.path: linear.module for linear in mmdit.other_linears()}
    linears |= {linear.path: linear.module for linear in mmdit.linears}
    assert sorted(rerounded) == sorted(linears.keys() - learned)
    expected = dict(native)
    for name in rerounded:
        nearest = round_to_nearest(values[f"{name}.weight"], Grid("group", 4, 64))
        for part in ("weight", "scales", "biases"):
            expected[f"{name}.{part}"] = getattr(nearest, part)
    assert_same(mmdit, expected)
    for name in learned:
        assert mx.array_equal(values_of_stock(linears[name]), values[f"{name}.weight"]), name
    assert_same(encoder, parameters(load_vae_encoder(spec, mx.float32)))
    assert_same(decoder, parameters(load_vae_decoder(spec, mx.float32)))


def guided_step(network):
    """The denoised latents of a fixed input at the middle of the schedule."""
    mx.random.seed(3)
    latents, tokens, pooled = (
        mx.random.normal(shape) for shape in ((1, 8, 8, 16), (2, 7, 128), (2, 64))
    )
    return predict(network, latents, mx.array(0.5), mx.array(500.0), tokens, pooled, 4.0)


def test_4bit_export_computes_what_its_values_compute(stock, spec, model, checkpoints, tmp_path):
    """One guided step of DiffusionKit's packed model and of the same values in plain linears."""
    path = export(checkpoints["blocks"], model, tmp_path, "diffusionkit-4bit")
    packed = stock(FOUR_BIT, path)[0]
    plain = load_network(spec, mx.float32)
    values = parameters(packed)
    for linear in [*packed.linears, *packed.other_linears()]:
        values[f"{linear.path}.weight"] = values_of_stock(linear.module)
        del values[f"{linear.path}.scales"], values[f"{linear.path}.biases"]
    plain.module.load_weights(list(values.items()))
    found, expected = guided_step(packed), guided_step(plain)
    # The same float32 products in another order: 2^-24 each, grown over some 30 layers.
    assert mx.mean((found - expected) ** 2) < 1e-9 * mx.mean(expected**2)


def test_a_channels_scale_is_repeated(spec, model, tmp_path):
    """fc2 has 256 inputs, stored in groups of 128: the same values fit into groups of 64."""
    config = assemble(spec, model, tmp_path, grid="channel")
    sizes = json.loads(config.read_text())["quantization"]
    assert 128 in {entry["group_size"] for entry in sizes.values() if isinstance(entry, dict)}
    tensors = export_checkpoint(spec, config.parent, "diffusionkit-4bit").tensors
    values = parameters(load_quantized(spec, config.parent, mx.float32))
    for linear in build_network().linears:
        name = f"model.diffusion_model.{linear.path}"
        parts = (tensors[f"{name}.{part}"] for part in ("weight", "scales", "biases"))
        stored = mx.dequantize(*parts, 64, 4).astype(mx.float32)
        assert mx.array_equal(stored, values[f"{linear.path}.weight"]), name


@pytest.mark.parametrize("options", [{"bits": 3}, {"bits": 8}, {"group_size": 32}])
def test_other_sizes_name_the_way_out(spec, model, tmp_path, options):
    config = assemble(spec, model, tmp_path, **options)
    with pytest.raises(UserError, match=r"bits in groups of .* Export diffusionkit-fp16 instead"):
        export_checkpoint(spec, config.parent, "diffusionkit-4bit")
    assert export_checkpoint(spec, config.parent, "diffusionkit-fp16").rerounded == []


def test_inputs_that_groups_of_64_do_not_divide_name_the_way_out(tmp_path):
    folder = write_folder(tmp_path / "narrow")
    model = {"name": "local", "checkpoint": str(folder), "dtype": "float32"}
    spec = read_spec("local", str(folder))
    config = assemble(spec, model, tmp_path)
    with pytest.raises(UserError, match=r"has 32 inputs.*export diffusionkit-fp16 instead"):
        export_checkpoint(spec, config.parent, "diffusionkit-4bit")


def test_unified_blocks_have_no_place(spec, checkpoints):
    shape = dataclasses.replace(spec.shape, depth_unified=1)
    unified = dataclasses.replace(spec, shape=shape)
    for name in EXPORTS:
        with pytest.raises(UserError, match="unified blocks"):
            export_checkpoint(unified, checkpoints["blocks"].parent, name)


def test_values_beyond_float16_are_refused(spec, checkpoints, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(checkpoints["blocks"].parent, folder)
    tensors = {
        name: mx.array(t)
        for name, t in load_tensors(
            folder / "model.safetensors", "ditquant.checkpoint_weights"
        ).items()
    }
    tensors["final_layer.linear.bias"] = mx.full(tensors["final_layer.linear.bias"].shape, 1e5)
    mx.eval(tensors)
    save_tensors(folder / "model.safetensors", tensors, "ditquant.checkpoint_weights")
    with pytest.raises(UserError, match=r"final_layer\.linear\.bias has values beyond float16"):
        export_checkpoint(spec, folder, "diffusionkit-fp16")


# -------------------------------------------------------------------------- recipes' scopes


def test_scopes_quantize_what_they_say(spec, checkpoints):
    network = build_network()
    learned = {linear.path for linear in network.linears}
    adaln = {linear.path for linear in network.other_linears("blocks+adaln")}
    others = {linear.path for linear in network.other_linears()}
    # Two blocks of two streams, and the final layer; 6 more: context, two embedders of two, final.
    assert len(adaln) == 2 * 2 + 1
    assert len(others - adaln) == 6
    expected = {"blocks": learned, "blocks+adaln": learned | adaln, "all": learned | others}
    for scope, config in checkpoints.items():
        tensors = load_tensors(config.parent / "model.safetensors", "ditquant.checkpoint_weights")
        packed = {name.removesuffix(".scales") for name in tensors if name.endswith(".scales")}
        assert packed == expected[scope]
        quantization = json.loads(config.read_text())["quantization"]
        for path in packed - learned:
            assert quantization[path] == {"group_size": 64, "bits": 8, "mode": "affine"}


def test_the_checkpoint_says_what_it_takes(checkpoints):
    """Exactly 4/16 + 2 x 16/64/16 of float16 where all is 4 bits in groups of 64."""
    documents = {scope: json.loads(config.read_text()) for scope, config in checkpoints.items()}
    assert documents["blocks"]["quantized_ratio"] == 0.28125
    for scope, document in documents.items():
        tensors = load_tensors(
            checkpoints[scope].parent / "model.safetensors", "ditquant.checkpoint_weights"
        )
        packed = [name.removesuffix(".scales") for name in tensors if name.endswith(".scales")]
        stored = sum(
            tensors[f"{path}.{part}"].nbytes
            for path in packed
            for part in ("weight", "scales", "biases")
        )
        assert document["quantized_bytes"] == stored
        assert (
            document["quantized_bytes"] / document["float16_bytes_of_quantized"]
            == (document["quantized_ratio"])
        )
        assert document["total_bytes"] == sum(tensor.nbytes for tensor in tensors.values())
    assert documents["all"]["total_bytes"] < documents["blocks"]["total_bytes"]


def test_inputs_of_other_widths_take_another_group_or_keep_their_precision(tmp_path, caplog):
    """32 inputs: groups of 32; the unchanged rest is said in the log."""
    folder = write_folder(tmp_path / "narrow")
    model = {"name": "local", "checkpoint": str(folder), "dtype": "float32"}
    spec = read_spec("local", str(folder))
    caplog.set_level("INFO", "ditquant")
    config = assemble(spec, model, tmp_path, "all")
    quantization = json.loads(config.read_text())["quantization"]
    assert quantization["context_embedder"] == {"group_size": 32, "bits": 8, "mode": "affine"}
    assert "context_embedder: groups of 32" in caplog.text


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("scope", ["blocks+adaln", "all"])
def test_checkpoints_of_every_scope_draw(spec, checkpoints, scope, packed):
    """Dequantized or packed, modulation included: one guided step of the same values."""
    network = load_quantized(spec, checkpoints[scope].parent, mx.float32, packed)
    reference = load_network(spec, mx.float32)
    values = parameters(load_quantized(spec, checkpoints[scope].parent, mx.float32))
    reference.module.load_weights(list(values.items()))
    found, expected = guided_step(network), guided_step(reference)
    # Other orders of summation, and 8-bit values that the kernel does not round to float16.
    assert mx.mean((found - expected) ** 2) < 1e-6 * mx.mean(expected**2)
    if packed:
        names = dict(tree_flatten(network.module.parameters()))
        assert names["final_layer.adaLN_modulation.layers.1.weight"].dtype == mx.uint32


def test_eight_bits_are_close_to_the_weights(spec):
    """255 steps across each group: a relative error of the order of 1/255."""
    for linear in load_network(spec, mx.float32).other_linears():
        weight = linear.module.weight
        values = dequantize(round_to_nearest(weight, Grid("group", 8, 64)))
        # Uniform rounding: step^2 / 12 with a step of at most range/255, range <= 2 max |w|.
        bound = (2 * mx.abs(weight).max() / 255) ** 2 / 12 * 1.5
        assert mx.mean((values - weight) ** 2) < bound, linear.path
