"""Rotated linears compute what the plain ones did, and show rotated inputs to all that looks."""

from __future__ import annotations

import numpy as np
import pytest

from ditquant.artifacts import save_tensors, write_json
from ditquant.backend import is_accelerated, mx, nn, to_numpy
from ditquant.checkpoints.checkpoint import (
    FORMAT,
    checkpoint_tensors,
    load_quantized,
    quantization_config,
)
from ditquant.checkpoints.exports import export_checkpoint
from ditquant.checkpoints.packed_blocks import blocks_unpacked
from ditquant.checkpoints.quantized import PackedLinear
from ditquant.errors import UserError
from ditquant.models.spec import read_spec
from ditquant.network.blocks import shared_input, tapped
from ditquant.network.diffusionkit import load_network
from ditquant.network.sampling import predict
from ditquant.planning import settings
from ditquant.weights.grids import Grid, dequantize, round_to_nearest
from ditquant.weights.quantize_block import quantize_block
from ditquant.weights.reconstruct import stream_errors, weights_restored
from ditquant.weights.rotation import (
    InputRotation,
    RotatedLinear,
    mark_rotated,
    rotate,
    rotated,
    signs,
    unrotated,
)
from support.block_data import random_trajectory
from support.models import build_network, parameters, write_folder
from support.problems import full_recipe, make_problem, whole_recipe
from support.schemes import fake_quantize

SIZE = 16
# Relative to the largest value: float32 in another order, or products that a GPU takes of values
# with 10 bits of mantissa (2^-11 each, through some layers).
CLOSE = 1e-2 if is_accelerated() else 1e-4


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    return read_spec("local", str(write_folder(tmp_path_factory.mktemp("model"))))


@pytest.fixture(scope="module")
def plain(spec):
    return load_network(spec, mx.float32)


@pytest.fixture
def turned(spec):
    model = load_network(spec, mx.float32)
    rotate(model, SIZE)
    return model


def velocity(model: nn.Module) -> mx.array:
    return predict(model, *random_trajectory(seed=2).at(1))


def hadamard(size: int) -> np.ndarray:
    """Sylvester's construction."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.sqrt(size)


@pytest.mark.parametrize(("channels", "size"), [(48, 16), (64, 64), (128, 32)])
def test_a_rotation_is_the_matrix_of_its_definition(channels, size):
    matrix = np.kron(np.eye(channels // size), hadamard(size)) * signs(channels)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(channels), atol=1e-12)
    x = mx.random.normal((2, 5, 1, channels), key=mx.random.key(0))
    expected = to_numpy(x).astype(np.float64) @ matrix.T
    # log2(size) additions of values that grow to sqrt(size) times their size.
    tolerance = 2**-23 * np.log2(size) * np.abs(expected).max()
    np.testing.assert_allclose(to_numpy(rotated(x, size)), expected, rtol=0, atol=tolerance)
    np.testing.assert_allclose(
        to_numpy(unrotated(rotated(x, size), size)), to_numpy(x), rtol=0, atol=2 * tolerance
    )


def test_signs_are_of_both_kinds_and_always_the_same():
    assert set(signs(256).tolist()) == {1.0, -1.0}
    assert 96 < (signs(256) > 0).sum() < 160
    np.testing.assert_array_equal(signs(256), signs.__wrapped__(256))


@pytest.mark.parametrize("size", [2, 16, 64, 512])
def test_its_gradient_is_its_transpose(size):
    x, y = mx.random.normal((2, 7, 512), key=mx.random.key(2))
    found = mx.grad(lambda x: (rotated(x, size) * y).sum())(x)
    assert mx.allclose(found, unrotated(y, size), rtol=0, atol=2**-18)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision_stays_half_precision(dtype):
    x = mx.random.normal((3, 64), key=mx.random.key(1))
    found = rotated(x.astype(dtype), 64)
    assert found.dtype == dtype
    # Of the result and, at most as often as there are additions, of what was rounded on the way.
    bound = 7 * (2**-10 if dtype == mx.float16 else 2**-7) * mx.max(mx.abs(x)).item()
    assert mx.max(mx.abs(found.astype(mx.float32) - rotated(x, 64))).item() < bound


def test_a_rotated_model_computes_the_same_under_the_same_names(plain, turned):
    before, after = parameters(plain), parameters(turned)
    assert {name: one.shape for name, one in before.items()} == {
        name: one.shape for name, one in after.items()
    }
    changed = {name for name in before if not mx.array_equal(before[name], after[name])}
    assert changed == {f"{linear.path}.weight" for linear in plain.linears}
    expected = velocity(plain)
    assert mx.allclose(velocity(turned), expected, rtol=0, atol=CLOSE * mx.abs(expected).max())


def test_a_model_in_half_precision_stays_close(spec):
    """Rotated weights are rounded once, and what a linear reads at most twice: 2^-11 each."""
    plain = load_network(spec, mx.float16)
    expected = velocity(plain).astype(mx.float32)
    rotate(plain, SIZE)
    assert all(linear.module.weight.dtype == mx.float16 for linear in plain.linears)
    error = velocity(plain).astype(mx.float32) - expected
    # A few roundings in each of two blocks' six layers, in energy.
    assert mx.mean(error**2) < 100 * 2**-22 * mx.mean(expected**2)


def test_none_rotates_nothing(plain):
    before = {name: mx.array(one) for name, one in parameters(plain).items()}
    rotate(plain, None)
    assert all(mx.array_equal(one, before[name]) for name, one in parameters(plain).items())
    assert not any(isinstance(linear.module, RotatedLinear) for linear in plain.linears)


def seen_by(model: nn.Module) -> dict[str, mx.array]:
    seen: dict[str, mx.array] = {}
    with tapped(model.linears, lambda linear, x: seen.update({linear.name: x})):
        mx.eval(velocity(model), seen)
    return seen


def test_taps_see_rotated_inputs_and_readers_of_one_array_the_same(plain, turned):
    own, found = seen_by(plain), seen_by(turned)
    by_input: dict[str, mx.array] = {}
    for linear in turned.linears:
        x = found[linear.name]
        expected = rotated(own[linear.name], SIZE)
        assert mx.allclose(x, expected, rtol=0, atol=CLOSE * mx.abs(expected).max()), linear.name
        assert by_input.setdefault(shared_input(linear), x) is x
        assert not linear.is_post_gelu
    assert len(by_input) < len(found)


def test_what_a_tap_returns_is_multiplied_without_another_rotation(turned):
    linears = turned.linears
    expected = velocity(turned)
    for depth in (1, 2):
        with tapped(linears, lambda linear, x: x + 0):
            if depth == 1:
                assert mx.array_equal(velocity(turned), expected)
                continue
            with tapped(linears, lambda linear, x: None):
                assert mx.array_equal(velocity(turned), expected)
    with tapped(linears[:1], lambda linear, x: mx.zeros_like(x)):
        assert not mx.allclose(velocity(turned), expected)


def test_an_array_is_rotated_once_for_its_readers_and_let_go():
    rotation, x = InputRotation(16, readers=3), mx.random.normal((4, 32))
    first = rotation(x)
    assert rotation(x) is first
    assert rotation(x) is first
    assert rotation._last is None
    assert mx.array_equal(rotation(x), first)
    assert not mx.array_equal(rotation(2 * x), first)


@pytest.mark.parametrize("size", [48, 128, 1])
def test_a_size_that_does_not_divide_is_a_message(spec, size):
    with pytest.raises(UserError, match=f"rotation: {size} does not divide the 64 inputs of mm00"):
        rotate(load_network(spec, mx.float32), size)


def test_outliers_of_single_channels_are_spread():
    """8 bits and one static scale, for inputs as published: 2 % of the channels 20 times larger."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((500, 256)).astype(np.float32)
    x[:, rng.choice(256, 5, replace=False)] *= 20

    def error(values: mx.array) -> float:
        scale = mx.max(mx.abs(values)).item() / 127
        return mx.mean((fake_quantize(values, scale, 8) - values) ** 2).item()

    # The range falls from 20 x 4 sigma to sqrt(1 + 0.02 x 400) x 5 sigma: 4 times, in energy 16.
    assert error(rotated(mx.array(x), 64)) < error(mx.array(x)) / 8


def test_a_block_that_is_learned_on_has_the_same_error_and_gradients(tmp_path):
    """Learned roundings work on a rotated block as on any other."""
    plain = make_problem(tmp_path, full_recipe("rtn"))
    rotated_problem = make_problem(tmp_path, full_recipe("rtn", rotation=SIZE))
    rows = mx.array([0, 1, 2])

    def error(problem, weights):
        return sum(stream_errors(problem, weights, rows))

    slopes = []
    for problem, turn in ((plain, lambda w: w), (rotated_problem, lambda w: rotated(w, SIZE))):
        noisy = [
            turn(weight + 0.05 * mx.random.normal(weight.shape, key=mx.random.key(index)))
            for index, weight in enumerate(plain.weights)
        ]
        with weights_restored(problem):
            slopes.append(mx.value_and_grad(lambda w, p=problem: error(p, w))(noisy))
            mx.eval(slopes[-1])
    (expected, before), (found, after) = slopes
    np.testing.assert_allclose(found.item(), expected.item(), rtol=CLOSE)
    for own, turned_back in zip(before, after, strict=True):
        other = unrotated(turned_back, SIZE)
        assert mx.allclose(other, own, rtol=0, atol=10 * CLOSE * mx.abs(own).max())


@pytest.mark.parametrize(
    "options",
    [
        {"rounding": "gptq"},
        {"rounding": "adaround", "start": "gptq", "clip": True},
        {"rounding": "taqdit", "grid": "channel"},
    ],
)
def test_learned_roundings_work_in_the_rotated_basis(tmp_path, options):
    recipe = full_recipe(rotation=SIZE, **options)
    problem = make_problem(tmp_path, recipe)
    result = quantize_block(problem, recipe, seed=0)
    assert result.document["kept"] == options["rounding"]
    assert (
        result.document["kept_error"]["held_out"] < result.document["hard_error"]["rtn"]["held_out"]
    )
    # The codes are near W H^T, and not near W.
    for linear, weight in zip(problem.linears, problem.weights, strict=True):
        values = dequantize(result.packed[linear.name])
        back = unrotated(values, SIZE)
        assert mx.mean((values - weight) ** 2) < 0.05 * mx.mean(weight**2)
        assert mx.mean((back - weight) ** 2) > mx.mean(weight**2)


@pytest.fixture
def checkpoint(tmp_path, spec, turned):
    """4 bits for all linears but one, which keeps its precision and its rotated weight."""
    linears = turned.linears
    packed = {
        linear.name: round_to_nearest(linear.module.weight, Grid("group", 4, 32), linear.name)
        for linear in linears[1:]
    }
    folder = tmp_path / "model"
    save_tensors(
        folder / "model.safetensors",
        checkpoint_tensors(turned, packed),
        "ditquant.checkpoint_weights",
    )
    document = {
        "model": spec.name, "quantization": quantization_config(turned, packed), "rotation": SIZE
    }  # fmt: skip
    write_json(folder / "config.json", FORMAT, document)
    for linear in linears[1:]:
        linear.module.weight = dequantize(packed[linear.name])
    return folder


def test_a_checkpoint_is_rotated_packed_or_not(spec, turned, checkpoint):
    expected = velocity(turned)
    close = {"rtol": 0, "atol": 1e-4 * mx.abs(expected).max()}
    assert mx.allclose(velocity(load_quantized(spec, checkpoint, mx.float32)), expected, **close)
    native = load_quantized(spec, checkpoint, mx.float32, packed=True)
    kinds = {type(linear.module) for linear in native.linears}
    assert kinds == {RotatedLinear, PackedLinear}
    assert mx.allclose(velocity(native), expected, **close)
    with blocks_unpacked(native):
        assert mx.allclose(velocity(native), expected, **close)
    seen = seen_by(native)
    name = "mm00.img.attn.q_proj"
    assert mx.allclose(seen[name], seen_by(turned)[name], rtol=0, atol=CLOSE)


def test_the_float16_export_is_turned_back_and_the_packed_one_refused(spec, turned, checkpoint):
    exported = export_checkpoint(spec, checkpoint, "diffusionkit-fp16")
    name = next(name for name in exported.tensors if name.endswith("x_block.mlp.fc2.weight"))
    module = turned.module.multimodal_transformer_blocks[0].image_transformer_block.mlp.fc2
    expected = unrotated(module.weight, SIZE)
    assert mx.allclose(exported.tensors[name].astype(mx.float32), expected, rtol=2**-10, atol=1e-6)
    with pytest.raises(UserError, match="rotates no inputs: export diffusionkit-fp16"):
        export_checkpoint(spec, checkpoint, "diffusionkit-4bit")


def test_weights_that_are_rotated_already_are_only_marked(spec, turned):
    model = load_network(spec, mx.float32)
    mark_rotated(model, SIZE)
    model.module.load_weights(list(parameters(turned).items()))
    assert mx.array_equal(velocity(model), velocity(turned))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"rounding": "rtn", "balance": "csb"}, "balance: csb"),
        ({"rounding": "awq", "balance": "none"}, "rounding: awq"),
    ],
)
def test_balancing_and_rotation_do_not_go_together(options, what):
    recipe = whole_recipe(**options, rotation=64)
    config = {"recipe": "both", "recipes": {"both": recipe.params()}}
    with pytest.raises(UserError, match=rf"recipes\.both: rotation does not go with {what}"):
        settings.check_recipes(config)


def test_unified_blocks_are_rotated_too():
    outputs = []
    for size in (None, 16):
        model = build_network(depth_unified=1, parallel_mlp_for_unified_blocks=True, seed=6)
        rotate(model, size)
        outputs.append(velocity(model))
    assert mx.allclose(outputs[1], outputs[0], rtol=0, atol=CLOSE * mx.abs(outputs[0]).max())
