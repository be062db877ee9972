"""Tensors of foreign checkpoints: float8 and its scales, types that are refused, finite values."""

from __future__ import annotations

import dataclasses
import importlib
import math
import shutil

import numpy as np
import pytest

from ditquant.backend import are_finite, mx, to_numpy
from ditquant.errors import UserError
from ditquant.models.load import load_mmdit, load_text_encoder, load_vae_decoder
from ditquant.models.spec import read_spec
from ditquant.models.weights import e4m3_values, e5m2_values, read_tensors
from support.models import parameters, write_folder
from support.safetensors import entry, write_tensors

CODES = np.arange(256, dtype=np.uint8)
PREFIX = "model.diffusion_model."
FC1 = f"{PREFIX}joint_blocks.1.x_block.mlp.fc1.weight"


def float8(code: int, exponent_bits: int, mantissa_bits: int, bias: int, ieee: bool) -> float:
    """What a code stands for, by the definition (Micikevicius et al. 2022, arXiv 2209.05433)."""
    sign = -1.0 if code >> 7 else 1.0
    exponent = code >> mantissa_bits & (1 << exponent_bits) - 1
    mantissa = code & (1 << mantissa_bits) - 1
    if exponent == (1 << exponent_bits) - 1:
        if ieee:
            return sign * math.inf if mantissa == 0 else math.nan
        if mantissa == (1 << mantissa_bits) - 1:
            return math.nan
    if exponent == 0:
        return sign * mantissa * 2.0 ** (1 - bias - mantissa_bits)
    return sign * (1 + mantissa / (1 << mantissa_bits)) * 2.0 ** (exponent - bias)


E4M3 = np.array([float8(code, 4, 3, 7, False) for code in range(256)], dtype=np.float32)
E5M2 = np.array([float8(code, 5, 2, 15, True) for code in range(256)], dtype=np.float32)


@pytest.mark.parametrize(("decode", "expected"), [(e4m3_values, E4M3), (e5m2_values, E5M2)])
def test_every_code_has_its_value(decode, expected):
    values = to_numpy(decode(mx.array(CODES)).astype(mx.float32))
    assert np.array_equal(values, expected, equal_nan=True)
    assert np.array_equal(
        np.signbit(values[~np.isnan(values)]), np.signbit(expected[~np.isnan(expected)])
    )


FINITE_CODES = CODES[np.isfinite(E4M3) & np.isfinite(E5M2)].reshape(-1, 2)


@pytest.mark.parametrize(("dtype", "values"), [("F8_E4M3", E4M3), ("F8_E5M2", E5M2)])
def test_float8_is_read_as_its_values_beside_other_types(tmp_path, dtype, values):
    half = np.linspace(-1, 1, 6, dtype=np.float16).reshape(2, 3)
    path = write_tensors(
        tmp_path / "x.safetensors",
        {
            "a.weight": entry(FINITE_CODES, dtype),
            "a.bias": entry(half),
            "b.weight": entry(
                (half.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16), "BF16"
            ),
            "c.weight": entry(half.astype(np.float32)),
            "none.weight": entry(np.zeros((0, 3), np.float16)),
        },
    )
    tensors = read_tensors(path)
    assert np.array_equal(to_numpy(tensors["a.weight"]), values[FINITE_CODES])
    assert np.array_equal(to_numpy(tensors["a.bias"]), half)
    assert tensors["b.weight"].dtype == mx.bfloat16
    assert np.allclose(to_numpy(tensors["b.weight"]), half, rtol=2**-7)
    assert np.array_equal(to_numpy(tensors["c.weight"]), half.astype(np.float32))
    assert tensors["none.weight"].shape == (0, 3)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
@pytest.mark.parametrize("name", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (4,), (4, 1)])
def test_scaled_float8_is_multiplied_by_its_scale(tmp_path, dtype, name, shape):
    codes = FINITE_CODES[40:48].reshape(4, 4)
    scale = np.random.default_rng(0).uniform(1e-3, 2e-3, shape).astype(np.float32)
    path = write_tensors(
        tmp_path / "x.safetensors",
        {
            "scaled_fp8": entry(np.zeros(0, np.uint8), dtype),
            "l.weight": entry(codes, dtype),
            f"l.{name}": entry(scale),
            "l.scale_input": entry(np.ones((), np.float32)),
            "l.input_scale": entry(np.ones((), np.float32)),
            "l.comfy_quant": entry(np.frombuffer(b'{"format": "float8_e4m3fn"}', np.uint8)),
        },
    )
    tensors = read_tensors(path)
    assert tensors.keys() == {"l.weight"}
    values = (E4M3 if dtype == "F8_E4M3" else E5M2)[codes]
    expected = values * (scale.reshape(-1, 1) if scale.size > 1 else scale.reshape(()))
    assert np.array_equal(to_numpy(tensors["l.weight"]), expected)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"l.weight": entry(np.zeros((4, 4), np.int8)),
             "l.weight_scale": entry(np.ones(1, np.float32))},
            r"l\.weight is stored as I8: no weight, but codes",
        ),
        (
            {"l.weight": entry(np.zeros((4, 8), np.uint8), "F8_E4M3"),
             "l.weight_scale": entry(np.ones((2, 4), np.float32))},
            r"l\.weight_scale has shape \[2, 4\], and only one scale",
        ),
        (
            {"l.weight": entry(np.zeros((4, 4), np.uint8), "F8_E4M3"),
             "l.weight_scale": entry(np.ones((1, 4), np.float32))},
            r"l\.weight_scale has shape \[1, 4\], and only one scale",
        ),
        (
            {"l.weight": entry(np.zeros((4, 4), np.float16)),
             "l.scale_weight": entry(np.ones(1, np.float32))},
            r"l\.scale_weight scales no float8 tensor",
        ),
        ({"l.weight": entry(np.zeros((4, 4), np.float64))}, r"l\.weight has dtype 'F64'"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_by_name(tmp_path, tensors, message):
    path = write_tensors(tmp_path / "x.safetensors", tensors)
    with pytest.raises(UserError, match=rf"x\.safetensors.*{message}.*(float16|F16)"):
        read_tensors(path)


def test_only_the_part_that_is_loaded_must_be_understood(tmp_path):
    tensors = {
        f"{PREFIX}a.weight": entry(np.ones((2, 2), np.float16)),
        "text_encoders.t5.ids": entry(np.ones((2, 2), np.int8)),
    }
    path = write_tensors(tmp_path / "x.safetensors", tensors)
    assert read_tensors(path, PREFIX).keys() == {f"{PREFIX}a.weight"}


# ------------------------------------------------------------------------------ whole models


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("model") / "tiny", seed=4)


@pytest.fixture
def stored(folder):
    """The tiny model's tensors, as numpy arrays."""
    return {
        name: np.array(value) for name, value in mx.load(str(folder / "tiny.safetensors")).items()
    }


@pytest.fixture
def changed(folder, tmp_path):
    """Writes other tensors into a copy of the model folder; gives its specification."""

    def write(tensors, file="tiny.safetensors"):
        copy = tmp_path / "tiny"
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        write_tensors(copy / file, tensors)
        return read_spec("local", str(copy))

    return write


def test_a_file_with_text_encoders_in_it_gives_its_other_parts(changed, stored):
    """As "sd3_medium_incl_clips_t5xxlfp8" is made."""
    tensors = {name: entry(tensor) for name, tensor in stored.items()}
    expected = parameters(load_mmdit(changed(tensors), mx.float32))
    clip = "text_encoders.clip_l.transformer.text_model.embeddings"
    tensors[f"{clip}.token_embedding.weight"] = entry(np.ones((4, 4), np.float16))
    tensors[f"{clip}.position_ids"] = entry(np.ones((1, 4), np.uint8))
    t5 = "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight"
    tensors[t5] = entry(np.full((4, 4), 0x7F, np.uint8), "F8_E4M3")
    spec = changed(tensors)
    actual = parameters(load_mmdit(spec, mx.float32))
    assert all(mx.array_equal(actual[name], expected[name]) for name in expected)
    load_vae_decoder(spec, mx.float32)


def as_float8(values: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, np.float32]:
    """Codes and one scale: each value by the nearest code's."""
    finite = np.flatnonzero(np.isfinite(table))
    scale = np.float32(np.abs(values).max() / np.abs(table[finite]).max())
    order = finite[np.argsort(table[finite], kind="stable")]
    levels = table[order] * scale
    nearest = np.abs(values.reshape(-1, 1) - levels).argmin(axis=1)
    return order[nearest].astype(np.uint8).reshape(values.shape), scale


@pytest.mark.parametrize(("dtype", "table"), [("F8_E4M3", E4M3), ("F8_E5M2", E5M2)])
def test_a_scaled_float8_checkpoint_is_the_model_that_its_values_are(changed, stored, dtype, table):
    """Every matrix of the MM-DiT in float8 with its scale, as ComfyUI stores them."""
    quantized, plain = {}, {}
    for name, value in stored.items():
        if name.startswith(PREFIX) and name.endswith(".weight") and value.ndim == 2:
            codes, scale = as_float8(value.astype(np.float32), table)
            quantized[name] = entry(codes, dtype)
            quantized[name.replace(".weight", ".scale_weight")] = entry(np.array(scale))
            plain[name] = entry(table[codes] * scale)
        else:
            quantized[name] = plain[name] = entry(value)
    quantized[f"{PREFIX}scaled_fp8"] = entry(np.zeros(2, np.uint8), dtype)
    expected = parameters(load_mmdit(changed(plain), mx.float32))
    spec = changed(quantized)
    actual = parameters(load_mmdit(spec, mx.float32))
    assert actual.keys() == expected.keys()
    assert all(mx.array_equal(actual[name], expected[name]) for name in expected)
    assert load_vae_decoder(spec, mx.float32)(mx.zeros((1, 4, 4, 16))).shape == (1, 32, 32, 3)


def test_a_float8_text_encoder_is_read(changed, folder):
    file = "clip_l/model.fp16.safetensors"
    stored = {name: np.array(value) for name, value in mx.load(str(folder / file)).items()}
    name = "text_model.encoder.layers.0.mlp.fc1.weight"
    codes, _ = as_float8(stored[name].astype(np.float32), E4M3)
    tensors = {
        **{key: entry(value) for key, value in stored.items()},
        name: entry(codes, "F8_E4M3"),
    }
    # A buffer that older exports have.
    tensors["text_model.embeddings.position_ids"] = entry(np.arange(24, dtype=np.uint8)[None])
    spec = changed(tensors, file)
    model, _ = load_text_encoder(spec, spec.text.encoders[0], mx.float32)
    assert np.array_equal(to_numpy(model.layers[0].linear1.weight), E4M3[codes])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16])
def test_values_that_are_not_finite_are_named(changed, stored, value, dtype):
    stored[FC1][3, 5] = value
    spec = changed({name: entry(tensor) for name, tensor in stored.items()})
    with pytest.raises(UserError, match=rf"tiny\.safetensors: {FC1} holds values.*Download"):
        load_mmdit(spec, dtype)
    # A job that needs another block reads and checks that one alone.
    model = load_mmdit(spec, dtype, blocks=["mm00"])
    with pytest.raises(UserError, match=r"mlp\.fc1"):
        load_mmdit(spec, dtype, blocks=["mm01"])
    assert len(model.multimodal_transformer_blocks) == 2
    load_vae_decoder(spec, dtype)


def test_values_beyond_a_dtype_say_which_dtype_to_take(changed, stored):
    tensors = {name: entry(tensor.astype(np.float32)) for name, tensor in stored.items()}
    tensors[FC1][1][3, 5] = -70000.0
    spec = changed(tensors)
    with pytest.raises(UserError) as error:
        load_mmdit(spec, mx.float16)
    assert f"{FC1} holds values up to 70000, beyond what float16 can hold" in str(error.value)
    assert "Set model.dtype to bfloat16 or float32" in str(error.value)
    load_mmdit(spec, mx.bfloat16)
    load_mmdit(spec, mx.float32)


def test_the_vae_and_text_encoders_are_checked_too(changed, stored, folder):
    name = "first_stage_model.decoder.conv_in.weight"
    stored[name][0, 0, 0, 0] = np.inf
    spec = changed({key: entry(tensor) for key, tensor in stored.items()})
    load_mmdit(spec, mx.float32)
    with pytest.raises(UserError, match=rf"{name} holds values that are infinite"):
        load_vae_decoder(spec, mx.float32)
    file = "clip_l/model.fp16.safetensors"
    text = {key: np.array(value) for key, value in mx.load(str(folder / file)).items()}
    text["text_projection.weight"][1, 1] = np.nan
    spec = changed({key: entry(tensor) for key, tensor in text.items()}, file)
    with pytest.raises(UserError, match=r"text_projection\.weight holds values"):
        load_text_encoder(spec, spec.text.encoders[0], mx.float32)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32])
def test_finite_is_decided_by_value(dtype):
    largest = mx.finfo(dtype).max
    good = mx.array([[0.0, -0.0, largest, -largest, 1e-7]], dtype=dtype)
    bad = [mx.array([[1.0, value]], dtype=dtype) for value in (np.nan, np.inf, -np.inf)]
    negative_nan = -mx.array([[np.nan, 1.0]], dtype=dtype)
    only_negative = mx.array([-1.0, -largest], dtype=dtype)
    empty = mx.zeros((0,), dtype=dtype)
    whole = mx.array([7])
    arrays = [good, good.T, only_negative, empty, whole, *bad, negative_nan]
    assert are_finite(arrays) == [True] * 5 + [False] * 4


# -------------------------------------------------------------------------------- wrong tensors


def test_tensors_that_do_not_fit_are_named_up_to_five(changed, stored):
    tensors = {name: entry(tensor) for name, tensor in stored.items()}
    for index in range(7):
        tensors[f"{PREFIX}joint_blocks.9.x_block.attn.extra{index}"] = entry(np.ones(2, np.float16))
    with pytest.raises(UserError) as error:
        load_mmdit(changed(tensors), mx.float32)
    message = str(error.value)
    assert "Received 7 parameters not in model" in message
    assert message.count("extra") == 5
    assert "and 2 more" in message
    assert "model.checkpoint" in message


def test_tensors_that_are_missing_or_of_another_shape_are_named(changed, stored):
    tensors = {name: entry(tensor) for name, tensor in stored.items()}
    kept = {name: value for name, value in tensors.items() if name != FC1}
    with pytest.raises(UserError, match=r"Missing 1 parameters: .*blocks\.1\..*mlp\.fc1\.weight"):
        load_mmdit(changed(kept), mx.float32)
    kept = {name: value for name, value in tensors.items() if "x_embedder" not in name}
    with pytest.raises(UserError, match=r"it lacks 'x_embedder\.proj\.weight'"):
        load_mmdit(changed(kept), mx.float32)
    tensors[FC1] = entry(stored[FC1][:, :32])
    with pytest.raises(UserError, match=r"Expected shape .* parameter .*mlp\.fc1\.weight"):
        load_mmdit(changed(tensors), mx.float32)


@pytest.mark.parametrize("what", ["missing", "shape"])
def test_a_text_encoder_must_be_complete(changed, folder, what):
    """DiffusionKit's loader takes what it gets, and the rest stays random."""
    file, name = "clip_l/model.fp16.safetensors", "text_model.encoder.layers.1.mlp.fc2.weight"
    text = {key: np.array(value) for key, value in mx.load(str(folder / file)).items()}
    if what == "missing":
        del text[name]
    else:
        text[name] = text[name][:-1]
    spec = changed({key: entry(tensor) for key, tensor in text.items()}, file)
    with pytest.raises(UserError, match=r"model\.fp16\.safetensors is no text encoder.*linear2"):
        load_text_encoder(spec, spec.text.encoders[0], mx.float32)


def test_a_local_checkpoint_answers_for_nothing_else(folder):
    """T5's and other repositories' files come from the hub, whatever the checkpoint is."""
    load = importlib.import_module("ditquant.models.load")
    asked = []
    spec = dataclasses.replace(read_spec("sd3-medium"), checkpoint=folder / "tiny.safetensors")
    files = load._Files(spec, lambda *wanted: asked.append(wanted) or "/there")
    assert files(spec.repository, "config.json") == str(spec.checkpoint)
    assert files("google/t5-v1_1-xxl", "config.json") == "/there"
    assert files(spec.text_repository, "clip_l/config.json") == "/there"
    assert len(asked) == 2
