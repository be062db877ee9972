"""Measured sensitivity: errors of single inputs, and tiers that are chosen by them."""

from __future__ import annotations

import numpy as np
import pytest

from ditquant.activations.configs import make_config, tier_configs
from ditquant.activations.observe import measure_image
from ditquant.activations.quant_config import CONFIG_FORMAT
from ditquant.activations.simulate import simulated_activations
from ditquant.activations.velocity_errors import (
    Sensitivity,
    latent_errors,
    load_sensitivity,
    save_sensitivity,
)
from ditquant.activations.velocity_sensitivity import (
    error_gains,
    gain_steps,
    measure_sensitivity,
    total_passes,
)
from ditquant.artifacts import read_json
from ditquant.backend import to_numpy
from ditquant.errors import UserError
from ditquant.network.sampling import velocity_at
from support.block_data import random_trajectory
from support.models import build_network
from support.schemes import scheme

MEASURED, STEPS = [0, 2, 4], [0, 4]


def asked(**tiers):
    measured = {"mode": "sensitivity", "average_bits": 6.0, "weighting": "velocity", "stride": 4}
    return scheme("dynamic-token", tiers=measured | tiers, channel_group=16)


@pytest.fixture(scope="module")
def model():
    return build_network(seed=5)


@pytest.fixture(scope="module")
def trajectory():
    return random_trajectory(1, steps=5)


@pytest.fixture(scope="module")
def statistics(model, trajectory):
    return measure_image(model, trajectory, MEASURED, "tiny", "0000")


@pytest.fixture(scope="module", params=[False, True], ids=["velocity", "latents"])
def follows(request):
    return request.param


@pytest.fixture(scope="module")
def measured(model, trajectory, statistics, follows):
    configs = tier_configs(statistics, asked())
    ticks = []
    found = measure_sensitivity(model, trajectory, STEPS, configs, follows, lambda: ticks.append(1))
    assert len(ticks) == total_passes(configs, STEPS, trajectory.num_steps, follows)
    assert bool(found.gains) == follows
    return found


@pytest.fixture(scope="module")
def errors(measured):
    return measured.errors


def test_every_input_has_an_error_that_falls_with_the_bits(errors, statistics):
    assert list(errors) == list(statistics.inputs)
    stacked = np.stack(list(errors.values()))
    assert stacked.shape == (len(errors), len(STEPS), 3)
    # Two bits are a factor of 16 in squares; over so few values somewhat more or less. Below 1e-12
    # there is the rounding of float32 velocities of about 1 alone.
    above = stacked[..., 1:] > 1e-11
    ratios = (stacked[..., :-1] / np.maximum(stacked[..., 1:], 1e-30))[above]
    assert (ratios > 3).all()
    assert np.median(ratios) == pytest.approx(16, rel=0.5)


def test_the_errors_of_single_inputs_add_up_to_that_of_all(model, trajectory, statistics, errors):
    def velocity(step):
        given = trajectory.conditioning
        return to_numpy(
            velocity_at(
                model, trajectory.latents[step : step + 1], trajectory.sigmas[step],
                trajectory.timesteps[step], given.tokens, given.pooled, trajectory.cfg_weight,
            )
        ).astype(np.float64)  # fmt: skip

    config = tier_configs(statistics, asked())[6]
    for row, step in enumerate(STEPS):
        with simulated_activations(model, config) as before_step:
            before_step(step, float(trajectory.sigmas[step].item()))
            quantized = velocity(step)
        together = ((quantized - velocity(step)) ** 2).mean()
        single = sum(rows[row, 1] for rows in errors.values())
        # 1,024 values of the velocity, and errors that are only roughly unrelated.
        assert single == pytest.approx(together, rel=0.4)


def test_files_hold_what_was_measured(tmp_path, measured):
    paths = [tmp_path / f"{image}.safetensors" for image in range(2)]

    def save(path, factor, sigmas):
        errors = {name: factor * rows for name, rows in measured.errors.items()}
        gains = {sigma: factor**2 * gain for sigma, gain in measured.gains.items()}
        save_sensitivity(path, Sensitivity(np.array(sigmas), errors, gains), [4, 6, 8])

    for factor, path in zip((1.0, 4.0), paths, strict=True):
        save(path, factor, [1.0, 0.4])
    found = load_sensitivity(paths)
    assert found.sigmas.tolist() == [1.0, 0.4]
    for name, rows in measured.errors.items():
        np.testing.assert_allclose(found.errors[name], 2.5 * rows, rtol=1e-6)
    assert list(found.gains) == list(measured.gains)
    for sigma, gain in measured.gains.items():
        assert found.gains[sigma] == pytest.approx(4 * gain)
    save(paths[1], 1.0, [1.0, 0.5])
    with pytest.raises(UserError, match="different sigmas"):
        load_sensitivity(paths)


def test_a_step_counts_by_the_square_of_its_length_and_its_gain(statistics):
    ones = {name: np.ones((2, 3)) for name in statistics.inputs}
    ones = {name: rows * [[1.0], [10.0]] for name, rows in ones.items()}
    sigmas = statistics.sigmas.astype(float)
    lengths = sigmas - np.append(sigmas[1:], 0)
    nearest = 1.0 if sigmas[0] - sigmas[1] < sigmas[1] - sigmas[2] else 10.0
    # The logarithm is linear between two known gains, and the outer ones hold beyond them.
    share = (sigmas[1] - sigmas[2]) / (sigmas[0] - sigmas[2])
    known = {float(sigmas[0]): 16.0, float(sigmas[2]): 0.25}
    for gains, (first, second, third) in (
        ({}, (1.0, 1.0, 1.0)),
        (known, (16.0, 16.0**share * 0.25 ** (1 - share), 0.25)),
        ({float(sigmas[1]): 3.0}, (3.0, 3.0, 3.0)),
    ):
        measured = Sensitivity(sigmas[[0, 2]], ones, gains)
        found = latent_errors(statistics, [0, 1, 1], measured)
        expected = [
            first * lengths[0] ** 2,
            second * nearest * lengths[1] ** 2 + third * 10 * lengths[2] ** 2,
        ]
        for rows in found.values():
            np.testing.assert_allclose(rows, np.repeat(np.array(expected)[:, None], 3, axis=1))


def test_gains_are_measured_where_they_change():
    assert gain_steps([0, 10, 20, 30, 40], 50) == [0, 10, 20, 30, 40, 41, 45, 47, 48]
    assert gain_steps([0, 2, 4], 5) == [0, 2, 3]
    assert gain_steps([0], 1) == []


def test_a_gain_is_what_the_steps_behind_make_of_the_error(model, trajectory, statistics):
    """Of the step before the last, by hand: one more step of Euler, from latents with the error."""
    config = tier_configs(statistics, asked())[4]
    gains = error_gains(model, trajectory, [3], config)
    step = trajectory.num_steps - 2
    sigmas = to_numpy(trajectory.sigmas).astype(np.float64)

    def velocity(at, latents):
        _, *arguments = trajectory.at(at)
        return velocity_at(model, latents, *arguments)

    exact = velocity(step, trajectory.latents[step : step + 1])
    with simulated_activations(model, config) as before_step:
        before_step(step, float(sigmas[step]))
        quantized = velocity(step, trajectory.latents[step : step + 1])
    error = (quantized - exact) * float(sigmas[step + 1] - sigmas[step])
    before = trajectory.latents[step + 1 : step + 2]
    finals = [
        latents + velocity(step + 1, latents) * float(sigmas[step + 2] - sigmas[step + 1])
        for latents in (before + error, before)
    ]
    change = to_numpy(finals[0] - finals[1]).astype(np.float64)
    expected = (change**2).mean() / (to_numpy(error).astype(np.float64) ** 2).mean()
    assert gains[float(sigmas[step])] == pytest.approx(expected, rel=1e-3)
    assert gains[float(sigmas[-2])] == 1.0
    assert all(gain > 0 for gain in gains.values())


def test_bits_go_to_what_moves_the_velocity(statistics, measured, follows):
    names = list(measured.errors)
    loud = {
        name: rows * (1e6 if name == names[3] else 1.0) for name, rows in measured.errors.items()
    }
    weighting = "latents" if follows else "velocity"
    document = make_config(
        statistics, asked(average_bits=5.0, weighting=weighting), lambda: pytest.fail("not asked"),
        lambda: Sensitivity(measured.sigmas, loud, measured.gains),
    )  # fmt: skip
    readers = [name for name, read in statistics.input_of.items() if read == names[3]]
    assert all(set(document["layers"][name]["bits"]) == {8} for name in readers)
    assert document["summary"]["average_bits"] <= 5.0
    assert document["configuration"]["tiers"]["weighting"] == weighting
    assert document["configuration"]["channel_group"] == 16
    # For who wants to see them: sigma -> gain.
    assert len(document["summary"].get("gains", {})) == len(measured.gains)


def test_bits_go_to_steps_whose_errors_grow(statistics, measured):
    """The same errors at every step: more bits where the gain is large."""
    same = {name: np.ones((1, 3)) * [[64.0, 4.0, 0.25]] for name in measured.errors}
    sigmas = statistics.sigmas.astype(float)

    def bits(gains):
        document = make_config(
            statistics, asked(average_bits=5.5), lambda: pytest.fail("not asked"),
            lambda: Sensitivity(sigmas[:1], same, gains),
        )  # fmt: skip
        return np.mean([layer["bits"] for layer in document["layers"].values()], axis=0)

    first, last = float(sigmas[0]), float(sigmas[-1])
    assert bits({first: 1e6, last: 1.0})[0] > bits({first: 1.0, last: 1e6})[0]
    assert bits({first: 1e6, last: 1.0})[-1] < bits({first: 1.0, last: 1e6})[-1]


def test_the_scripts_measure_and_choose(tmp_path, tiny_calibration):
    import analyze_activations
    import measure_sensitivity as script

    model, path, statistics_file = tiny_calibration
    found = []
    for name in ("a", "b"):
        output = tmp_path / f"{name}.safetensors"
        options = asked(weighting="latents").params
        script.main(str(path), str(statistics_file), str(output), options, model)
        found.append(output.read_bytes())
    assert found[0] == found[1]
    assert load_sensitivity([tmp_path / "a.safetensors"]).gains
    config = tmp_path / "quant_config_multitier.json"
    analyze_activations.main(
        str(statistics_file), str(config), options, sensitivity=[str(tmp_path / "a.safetensors")]
    )
    document = read_json(config, CONFIG_FORMAT)
    assert 4 < document["summary"]["average_bits"] <= 6.0


@pytest.fixture
def tiny_calibration(tmp_path, trajectory, monkeypatch, model, statistics):
    """Model parameters, a trajectory file and a statistics file, of the tiny model."""
    import measure_sensitivity as script
    from ditquant.activations.input_statistics import save_statistics

    monkeypatch.setattr(script, "load_measured", lambda *model_and_checkpoint: (None, model))
    monkeypatch.setattr(script, "load_trajectory", lambda path: trajectory)
    save_statistics(tmp_path / "statistics.safetensors", statistics)
    parameters = {"name": "demo", "checkpoint": None, "dtype": "float32"}
    return parameters, tmp_path / "0000.safetensors", tmp_path / "statistics.safetensors"
