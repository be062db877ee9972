"""Fake quantization: values, lookup by sigma, and configurations that do not fit."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from ditquant.activations import simulate as simulation_module
from ditquant.activations.fake_quantization import PortableQuantizer
from ditquant.activations.granularity import GRANULARITIES
from ditquant.activations.observe import measure_image
from ditquant.activations.quant_config import CONFIG_FORMAT, load_quant_config
from ditquant.activations.simulate import simulated_activations
from ditquant.artifacts import write_json
from ditquant.backend import mx, to_numpy
from ditquant.errors import UserError
from ditquant.network.blocks import tapped
from ditquant.network.calibration import Conditioning, Trajectory
from ditquant.network.sampling import initial_latents, leave_alone, sample_euler, sigma_schedule
from support.models import build_network
from support.schemes import fake_quantize, single_tier
from support.schemes import granularity as granularity_named

STEPS = 6


@pytest.fixture(scope="module")
def model():
    return build_network(seed=7)


@pytest.fixture(scope="module")
def conditioning():
    mx.random.seed(2)
    return Conditioning(mx.random.normal((2, 7, 32)), mx.random.normal((2, 32)))


def sample(model, conditioning, num_steps=STEPS, before_step=leave_alone, latents=None):
    sigmas = sigma_schedule(num_steps, 3.0)
    start = initial_latents(4, (1, 8, 8, 16), sigmas[0])
    return to_numpy(
        sample_euler(
            model, start, sigmas, conditioning.tokens, conditioning.pooled, 4.0,
            before_step=before_step,
            observer=None if latents is None else lambda step: latents.append(step.latents),
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def measured(model, conditioning):
    latents: list[mx.array] = []
    final = sample(model, conditioning, latents=latents)
    sigmas = sigma_schedule(STEPS, 3.0)
    path = Trajectory(
        mx.concatenate([*latents, mx.array(final)]),
        sigmas,
        sigmas[:-1] * 1000,
        conditioning,
        4.0,
        "",
    )
    return measure_image(model, path, list(range(STEPS)), "tiny", "0000")


@pytest.fixture(scope="module")
def document(measured):
    return single_tier(measured, 8, "step", "absmax")


def configuration(tmp_path, document):
    path = tmp_path / "quant_config.json"
    write_json(path, CONFIG_FORMAT, document)
    return load_quant_config(path)


def simulate(model, conditioning, config, num_steps=STEPS):
    with simulated_activations(model, config) as before_step:
        return sample(model, conditioning, num_steps, before_step)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(((found - expected) ** 2).sum() / (expected**2).sum())


# ------------------------------------------------------------------------------- the function


def test_known_values():
    x = mx.array([0.0, 0.24, 0.26, -0.26, 63.4, 63.6, 1000.0, -63.9, -64.1, -1000.0])
    expected = [0.0, 0.0, 0.5, -0.5, 63.5, 63.5, 63.5, -64.0, -64.0, -64.0]
    assert fake_quantize(x, 0.5, 8).tolist() == expected
    four = mx.array([0.9, 7.4, 7.6, -8.4, -9.0])
    assert fake_quantize(four, 1.0, 4).tolist() == [1.0, 7.0, 7.0, -8.0, -8.0]


def test_a_shift_moves_the_codes():
    x = mx.array([-0.2, 2.0, 4.25, 9.0])
    # Codes of (x - 2) / 0.5, clipped to -8 .. 7.
    assert fake_quantize(x, 0.5, 4, shift=2.0).tolist() == [0.0, 2.0, 4.0, 5.5]


@pytest.mark.parametrize("bits", [4, 6, 8, 16])
@pytest.mark.parametrize("shift", [0.0, 1.7])
def test_inside_the_range_the_error_is_half_a_step_at_most(bits, shift):
    scale = 2.0 / (2 ** (bits - 1) - 1)
    x = shift + mx.linspace(-2, 2, 10_001)
    error = np.abs(to_numpy(fake_quantize(x, scale, bits, shift)) - to_numpy(x))
    # Beside s/2, float32 rounds values below 4 by 2^-22 at most, three times.
    assert error.max() <= scale / 2 + 3 * 2.0**-22
    assert error.max() > 0.45 * scale


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32])
def test_the_dtype_stays_and_the_arithmetic_is_float32(dtype):
    x = mx.random.normal((4, 3, 1, 8)).astype(dtype)
    result = fake_quantize(x, 0.0371, 8)
    assert result.dtype == dtype
    values = to_numpy(x).astype(np.float32)
    scale = np.float32(0.0371)
    codes = np.clip(np.rint(values / scale), -128, 127).astype(np.float32)
    expected = mx.array(codes * scale).astype(dtype)
    assert mx.array_equal(result, expected)


# ------------------------------------------------------------------------------ configurations


@pytest.mark.parametrize("num_steps", [20, 28, 50])
def test_the_nearest_measured_sigma_is_taken_whatever_the_number_of_steps(
    tmp_path, document, num_steps
):
    config = configuration(tmp_path, document)
    measured_sigmas = np.array(config.sigmas)
    for sigma in sigma_schedule(num_steps, 3.0)[:-1].tolist():
        distance = np.abs(measured_sigmas - sigma)
        assert distance[config.row(sigma)] == distance.min()
    assert config.row(1.0) == 0
    assert config.row(0.0) == len(measured_sigmas) - 1


@pytest.mark.parametrize("num_steps", [3, 9])
def test_scales_follow_sigma_and_not_the_step_index(
    tmp_path, model, conditioning, document, num_steps
):
    config = configuration(tmp_path, document)
    sigmas = sigma_schedule(num_steps, 3.0)
    scale_of = config.layers["mm01.img.mlp.fc1"].scales
    seen: list[mx.array] = []

    def keep(linear, x):
        if linear.name == "mm01.img.mlp.fc1":
            seen.append(x)

    # The tap that was there first stands between the quantizer's and the linear.
    with (
        tapped(model.linears, keep),
        simulated_activations(model, config) as before_step,
    ):
        sample(model, conditioning, num_steps, before_step)
    for sigma, x in zip(sigmas[:-1].tolist(), seen, strict=True):
        codes = to_numpy(x) / np.float32(scale_of[config.row(sigma)])
        np.testing.assert_allclose(codes, np.rint(codes), atol=1e-4)


def test_static_equals_step_when_the_scales_are_equal(tmp_path, model, conditioning, document):
    static, step = copy.deepcopy(document), copy.deepcopy(document)
    for name, layer in step["layers"].items():
        for key in ("bits", "scales", "shifts"):
            if key in layer:
                static["layers"][name][key] = layer[key][:1]
                layer[key] = layer[key][:1] * STEPS
    results = [
        simulate(model, conditioning, configuration(tmp_path, made)) for made in (static, step)
    ]
    np.testing.assert_array_equal(*results)


def test_sixteen_bits_leave_the_result_alone_and_fewer_bits_err_more(
    tmp_path, model, conditioning, measured
):
    full = sample(model, conditioning)
    errors = {
        bits: relative_error(
            simulate(
                model, conditioning,
                configuration(tmp_path, single_tier(measured, bits, "step", "absmax")),
            ),
            full,
        )
        for bits in (4, 6, 8, 16)
    }  # fmt: skip
    assert errors[4] > errors[6] > errors[8] > errors[16]
    # Error goes with the square of the step: 16 bits have (127 / 32767)^2 of that of 8 bits. The
    # factor allows for the network's reaction not being linear and for float32.
    assert errors[16] < 10 * errors[8] * (127 / 32767) ** 2 + 1e-10
    assert errors[8] < 0.05


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("num_steps", [4, 6, 9])
def test_every_granularity_holds_at_other_numbers_of_steps(
    tmp_path, model, conditioning, measured, granularity, num_steps
):
    options = {"groups": 3, "degree": 2}
    made = single_tier(measured, 8, granularity, "absmax", **options)
    config = configuration(tmp_path, made)
    full = sample(model, conditioning, num_steps)
    error = relative_error(simulate(model, conditioning, config, num_steps), full)
    # The bound that one scale a step keeps to above; other steps between the measured ones differ
    # by less than a bit in range, four in squared error.
    assert 0 < error < (0.05 if num_steps == STEPS else 0.2)


@pytest.mark.parametrize(
    ("granularity", "bits", "times"),
    [
        ("static", None, 1),
        ("step", None, STEPS),
        ("polynomial", None, STEPS),
        ("dynamic-token", None, 1),
        # Tiers of its own at each sigma.
        ("dynamic-token", [8, 6] * (STEPS // 2), STEPS),
    ],
)
def test_numbers_are_made_where_they_change_and_once(
    tmp_path, model, measured, monkeypatch, granularity, bits, times
):
    document = single_tier(measured, 8, granularity, "absmax")
    if bits:
        for layer in document["layers"].values():
            layer["bits"] = bits
    config = configuration(tmp_path, document)
    made = []
    make = PortableQuantizer.arguments
    monkeypatch.setattr(
        PortableQuantizer,
        "arguments",
        lambda self, numbers: made.append(numbers) or make(self, numbers),
    )
    simulation = simulation_module.Simulation(config)
    for _ in range(2):
        for index, sigma in enumerate(config.sigmas):
            simulation(index, sigma)
    assert len(made) == times
    assert config.is_constant == (times == 1)


def test_the_model_is_left_as_it_was(tmp_path, model, conditioning, document):
    before = sample(model, conditioning)
    simulate(model, conditioning, configuration(tmp_path, document))
    np.testing.assert_array_equal(sample(model, conditioning), before)


# -------------------------------------------------------------------------------- what is refused


def test_a_forward_pass_before_the_first_sigma_is_a_bug(tmp_path, model, conditioning, document):
    config = configuration(tmp_path, document)
    with simulated_activations(model, config), pytest.raises(RuntimeError, match="before_step"):
        sample(model, conditioning)


def test_unknown_layers_are_refused(tmp_path, model, document):
    changed = copy.deepcopy(document)
    changed["layers"]["mm07.img.mlp.fc1"] = changed["layers"].pop("mm01.img.mlp.fc1")
    config = configuration(tmp_path, changed)
    with (
        pytest.raises(
            UserError, match=r"unknown layers: 1 .*mm07\.img\.mlp\.fc1.*missing layers: 1"
        ),
        simulated_activations(model, config),
    ):
        pass


def test_a_configuration_of_other_widths_is_refused(tmp_path, conditioning, document):
    wider = build_network(hidden_size=128)
    config = configuration(tmp_path, document)
    with (
        simulated_activations(wider, config) as before_step,
        pytest.raises(UserError, match=r"reads 128 channels.*tiny has 64"),
    ):
        sample(wider, conditioning, before_step=before_step)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("scales", [0.1, 0.2], "one for each of the 6 sigmas; found 6, 2 and 2"),
        ("scales", [0.0] * STEPS, "must be positive"),
        ("bits", [1] * STEPS, "bits 2 to 16"),
        ("bits", [8], "found 1, 6 and 6"),
    ],
)
def test_entries_that_do_not_fit_together_are_refused(tmp_path, document, key, value, message):
    changed = copy.deepcopy(document)
    changed["layers"]["mm00.txt.mlp.fc1"][key] = value
    with pytest.raises(UserError, match=message):
        configuration(tmp_path, changed)


def test_a_garbled_file_is_refused(tmp_path, document):
    changed = copy.deepcopy(document)
    del changed["layers"]["mm00.txt.mlp.fc1"]["scales"]
    with pytest.raises(UserError, match="lacks or garbles 'scales'"):
        configuration(tmp_path, changed)


def test_errors_of_inputs_are_measured_by_sigma(model, conditioning, tmp_path, document):
    config = configuration(tmp_path, document)
    with simulated_activations(model, config) as before_step:
        with before_step.measuring() as errors:
            measured_run = sample(model, conditioning, before_step=before_step)
        # Measuring changes nothing, and ends with its context.
        np.testing.assert_array_equal(measured_run, sample(model, conditioning, 6, before_step))
    assert set(errors) == {layer.input for layer in config.layers.values()}
    for name, by_sigma in errors.items():
        assert list(by_sigma) == [
            float(sigma) for sigma in to_numpy(sigma_schedule(STEPS, 3.0))[:-1]
        ]
        # A range of a few standard deviations in 255 steps: 20 log10(255 / 2 r) + 10.8 with a range
        # of r deviations is 43 dB at 3 and 31 at 12.
        assert all(28 < decibels < 50 for decibels in by_sigma.values()), name


def test_the_measured_error_is_that_of_the_input():
    import ditquant.activations.simulate as simulate_module
    from ditquant.activations.quant_config import LayerConfig, QuantConfig
    from ditquant.network.blocks import Linear

    layer = LayerConfig("a", 3, (8,), (0.5,), (0.0,))
    config = QuantConfig("m", (1.0,), {"a": layer}, granularity_named("static"), (0,))
    simulation = simulate_module.Simulation(config)
    linear = Linear("a", "a", [], "0")
    with simulation.measuring() as errors:
        for x in ([1.1, 2.0, 3.0], [1.0, 2.2, 3.0]):
            simulation(0, 1.0)
            simulation.see(linear, mx.array([x]))
    expected = 10 * np.log10((1.1**2 + 4 + 9 + 1 + 2.2**2 + 9) / (0.1**2 + 0.2**2))
    assert errors["a"][1.0] == pytest.approx(expected, rel=1e-5)
