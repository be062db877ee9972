"""The native checkpoint: exact, loadable as mlx-lm loads its own, refused when it is none."""

from __future__ import annotations

import json

import pytest
from mlx.utils import tree_flatten

from ditquant.artifacts import load_tensors, read_json, save_tensors, write_json
from ditquant.backend import mx, nn
from ditquant.checkpoints.checkpoint import (
    FORMAT,
    WEIGHTS_FORMAT,
    checkpoint_tensors,
    load_quantized,
    quantization_config,
    stored_sizes,
)
from ditquant.checkpoints.quantized import PackedLinear
from ditquant.errors import UserError
from ditquant.models.spec import read_spec
from ditquant.weights.block_files import read_packed
from ditquant.weights.grids import Grid, dequantize, round_to_nearest
from support.models import build_network, parameters, write_folder


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    return read_spec("local", str(write_folder(tmp_path_factory.mktemp("model"))))


@pytest.fixture(scope="module")
def model():
    """The folder's MM-DiT as the pipeline has it: float16 values in float32."""
    model = build_network(seed=0)
    model.module.set_dtype(mx.float16)
    model.module.set_dtype(mx.float32)
    return model


@pytest.fixture(scope="module")
def quantized(model):
    """Two sizes in one checkpoint: 4 bits in groups of 32, and 8 bits in groups of 64 for fc2."""
    packed = {}
    for linear in model.linears:
        grid = Grid("group", 8, 64) if linear.is_post_gelu else Grid("group", 4, 32)
        packed[linear.name] = round_to_nearest(linear.module.weight, grid, linear.name)
    return packed


@pytest.fixture(scope="module")
def folder(tmp_path_factory, spec, model, quantized):
    folder = tmp_path_factory.mktemp("weights") / "model"
    save_tensors(
        folder / "model.safetensors",
        checkpoint_tensors(model, quantized),
        WEIGHTS_FORMAT,
    )
    quantization = quantization_config(model, quantized)
    write_json(folder / "config.json", FORMAT, {"model": spec.name, "quantization": quantization})
    return folder


def test_config_names_what_differs(folder, model):
    quantization = json.loads((folder / "config.json").read_text())["quantization"]
    common = {key: quantization.pop(key) for key in ("group_size", "bits", "mode")}
    assert common == {"group_size": 32, "bits": 4, "mode": "affine"}
    paths = {linear.path for linear in model.linears if linear.is_post_gelu}
    assert quantization == {path: {"group_size": 64, "bits": 8, "mode": "affine"} for path in paths}


def test_unquantized_parameters_are_stored_without_loss(folder, model):
    tensors = load_tensors(folder / "model.safetensors", WEIGHTS_FORMAT)
    paths = {linear.path for linear in model.linears}
    rest = [name for name in parameters(model) if name.removesuffix(".weight") not in paths]
    for name in rest:
        assert tensors[name].dtype == mx.float16
        assert mx.array_equal(tensors[name].astype(mx.float32), parameters(model)[name])


def test_float32_values_beyond_float16_stay_float32(model, quantized):
    fine = build_network(seed=0)
    tensors = checkpoint_tensors(fine, quantized)
    assert tensors["context_embedder.weight"].dtype == mx.float32


def test_loads_as_mlx_lm_loads_its_checkpoints(folder, quantized):
    """As `load_model` of mlx-lm: quantize what configuration and file say, then load strictly."""
    plain = build_network(seed=1)
    weights = load_tensors(folder / "model.safetensors", WEIGHTS_FORMAT)
    quantization = json.loads((folder / "config.json").read_text())["quantization"]

    def class_predicate(path, module):
        if path in quantization:
            return quantization[path]
        if not hasattr(module, "to_quantized"):
            return False
        return f"{path}.scales" in weights

    nn.quantize(
        plain.module,
        group_size=quantization["group_size"],
        bits=quantization["bits"],
        mode=quantization["mode"],
        class_predicate=class_predicate,
    )
    plain.module.load_weights(list(weights.items()), strict=True)
    loaded = parameters(plain)
    assert loaded.keys() == weights.keys()
    assert all(mx.array_equal(loaded[name], tensor) for name, tensor in weights.items())
    for linear in plain.linears:
        layer, expected = linear.module, quantized[linear.name]
        values = mx.dequantize(
            layer.weight, layer.scales, layer.biases, layer.group_size, layer.bits
        )
        assert mx.array_equal(values.astype(mx.float32), dequantize(expected)), linear.name


def test_dequantized_model_has_the_optimised_values(spec, folder, model, quantized):
    loaded = load_quantized(spec, folder, mx.float32)
    assert all(value.dtype == mx.float32 for _, value in tree_flatten(loaded.module.parameters()))
    linears = {linear.name: linear.module for linear in loaded.linears}
    for name, packed in quantized.items():
        assert type(linears[name]) is nn.Linear
        assert mx.array_equal(linears[name].weight, dequantize(packed)), name
    originals = {linear.name: linear.module for linear in model.linears}
    for name, layer in linears.items():
        assert ("bias" in layer) == ("bias" in originals[name])
        if "bias" in layer:
            assert mx.array_equal(layer.bias, originals[name].bias)


def test_packed_model_computes_the_same(spec, folder):
    plain = load_quantized(spec, folder, mx.float32)
    packed = load_quantized(spec, folder, mx.float32, packed=True)
    x = mx.random.normal((2, 5, 1, 64), key=mx.random.key(3))
    for one, other in zip(plain.linears, packed.linears, strict=True):
        assert isinstance(other.module, PackedLinear)
        rows = mx.tile(x, (1, 1, 1, one.module.weight.shape[1] // 64))
        expected, output = one.module(rows), other.module(rows)
        assert output.shape == expected.shape
        # Up to 6 bits the same products, summed in another order. Eight-bit values are rounded to
        # float16 by `dequantize` and not by the kernel: 2^-11 of each of 256 products of size ~0.1.
        tolerance = 2e-3 if other.module.bits == 8 else 1e-4
        assert mx.allclose(output, expected, rtol=1e-4, atol=tolerance), one.name


def test_sizes_at_four_bits_in_groups_of_64_are_exact(model):
    """4/16 of the bytes for the codes, and 2 x 16 bits for each 64 weights of 16 bits."""
    grid = Grid("group", 4, 64)
    packed = {linear.name: round_to_nearest(linear.module.weight, grid) for linear in model.linears}
    tensors = checkpoint_tensors(model, packed)
    sizes = stored_sizes(tensors, packed)
    weights = sum(linear.module.weight.size for linear in model.linears)
    assert sizes["float16_bytes_of_quantized"] == 2 * weights
    assert sizes["quantized_ratio"] == 4 / 16 + 2 * 16 / 64 / 16 == 0.28125 <= 0.29
    rest = sum(tensor.size for tensor in parameters(model).values()) - weights
    assert sizes["total_bytes"] == sizes["quantized_bytes"] + 2 * rest


def test_blocks_are_read_back(tmp_path, quantized):
    name = "mm00.img.mlp.fc2"
    packed = quantized[name]
    tensors = {f"{name}.{part}": getattr(packed, part) for part in ("weight", "scales", "biases")}
    sizes = {name: {"bits": 8, "group_size": 64}}
    save_tensors(
        tmp_path / "mm00.safetensors", tensors, "ditquant.block_weights", {"quantization": sizes}
    )
    read = read_packed([tmp_path / "mm00.safetensors"])[name]
    assert mx.array_equal(dequantize(read), dequantize(packed))


def break_nothing_there(folder):
    (folder / "config.json").unlink()


def break_truncated(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def break_foreign_json(folder):
    (folder / "config.json").write_text('{"model_type": "llama"}')


def break_other_model(folder):
    config = read_json(folder / "config.json", FORMAT)
    kept = {key: config[key] for key in config if key not in ("format", "version", "digest")}
    write_json(folder / "config.json", FORMAT, {**kept, "model": "sd3-medium"})


def break_other_tensors(folder):
    save_tensors(folder / "model.safetensors", {"lm_head.weight": mx.zeros((4, 4))}, WEIGHTS_FORMAT)


def break_half_a_layer(folder):
    tensors = load_tensors(folder / "model.safetensors", WEIGHTS_FORMAT)
    name = next(name for name in tensors if name.endswith(".biases"))
    kept = {key: mx.array(value) for key, value in tensors.items() if key != name}
    mx.eval(kept)
    save_tensors(folder / "model.safetensors", kept, WEIGHTS_FORMAT)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_nothing_there, "has no config.json"),
        (break_truncated, "truncated"),
        (break_foreign_json, "is damaged"),
        (break_other_model, "a checkpoint of sd3-medium, not of tiny"),
        (break_other_tensors, "does not fit tiny"),
        (break_half_a_layer, "does not fit tiny"),
    ],
)
def test_a_foreign_or_broken_checkpoint_is_a_clear_error(
    spec, model, quantized, tmp_path, damage, message, packed
):
    folder = tmp_path / "model"
    save_tensors(
        folder / "model.safetensors",
        checkpoint_tensors(model, quantized),
        WEIGHTS_FORMAT,
    )
    quantization = quantization_config(model, quantized)
    write_json(folder / "config.json", FORMAT, {"model": spec.name, "quantization": quantization})
    damage(folder)
    with pytest.raises(UserError, match=message):
        load_quantized(spec, folder, mx.float32, packed)
