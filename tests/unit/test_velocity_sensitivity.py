"""Measured sensitivity: errors of single inputs, and tiers that are chosen by them."""

from __future__ import annotations

import numpy as np
import pytest

from ditquant.activation_configs import make_config, tier_configs
from ditquant.artifacts import read_json
from ditquant.backend import to_numpy
from ditquant.errors import UserError
from ditquant.observe import measure_image
from ditquant.ranges import CONFIG_FORMAT
from ditquant.sampling import velocity_at
from ditquant.simulate import simulated_activations
from ditquant.velocity_sensitivity import (
    latent_errors,
    load_velocity_errors,
    num_passes,
    save_velocity_errors,
    velocity_errors,
)
from support.block_data import random_trajectory
from support.models import build_mmdit

MEASURED, STEPS = [0, 2, 4], [0, 4]


def asked(**tiers):
    return {
        "granularity": "dynamic-token",
        "range": "absmax",
        "options": {"channel_group": 16},
        "tiers": {
            "mode": "sensitivity", "average_bits": 6.0, "weighting": "velocity", "images": 1,
            "stride": 4, **tiers,
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return build_mmdit(seed=5)


@pytest.fixture(scope="module")
def trajectory():
    return random_trajectory(1, steps=5)


@pytest.fixture(scope="module")
def statistics(model, trajectory):
    return measure_image(model, trajectory, MEASURED, "tiny", "0000")


@pytest.fixture(scope="module")
def errors(model, trajectory, statistics):
    configs = tier_configs(statistics, asked())
    ticks = []
    found = velocity_errors(model, trajectory, STEPS, configs, lambda: ticks.append(1))
    assert len(ticks) == num_passes(configs, STEPS)
    return found


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


def test_files_hold_what_was_measured(tmp_path, errors):
    paths = [tmp_path / f"{image}.safetensors" for image in range(2)]
    for factor, path in enumerate(paths, start=1):
        scaled = {name: factor * rows for name, rows in errors.items()}
        save_velocity_errors(path, scaled, [1.0, 0.4], [4, 6, 8])
    sigmas, averaged = load_velocity_errors(paths)
    assert sigmas.tolist() == [1.0, 0.4]
    for name, rows in errors.items():
        np.testing.assert_allclose(averaged[name], 1.5 * rows, rtol=1e-6)
    save_velocity_errors(paths[1], errors, [1.0, 0.5], [4, 6, 8])
    with pytest.raises(UserError, match="different sigmas"):
        load_velocity_errors(paths)


def test_a_step_counts_by_the_square_of_its_length(statistics):
    ones = {name: np.ones((2, 3)) for name in statistics.inputs}
    ones = {name: rows * [[1.0], [10.0]] for name, rows in ones.items()}
    sigmas = statistics.sigmas.astype(float)
    found = latent_errors(statistics, [0, 1, 1], sigmas[[0, 2]], ones)
    lengths = sigmas - np.append(sigmas[1:], 0)
    nearest = 1.0 if sigmas[0] - sigmas[1] < sigmas[1] - sigmas[2] else 10.0
    expected = [lengths[0] ** 2, nearest * lengths[1] ** 2 + 10 * lengths[2] ** 2]
    for rows in found.values():
        np.testing.assert_allclose(rows, np.repeat(np.array(expected)[:, None], 3, axis=1))


def test_bits_go_to_what_moves_the_velocity(statistics, errors):
    sigmas = statistics.sigmas[[0, 2]]
    names = list(errors)
    loud = {name: rows * (1e6 if name == names[3] else 1.0) for name, rows in errors.items()}
    document = make_config(
        statistics, asked(average_bits=5.0), lambda: pytest.fail("not asked"),
        lambda: (sigmas, loud),
    )  # fmt: skip
    readers = [name for name, read in statistics.input_of.items() if read == names[3]]
    assert all(set(document["layers"][name]["bits"]) == {8} for name in readers)
    assert document["summary"]["average_bits"] <= 5.0
    assert document["configuration"]["tiers"]["weighting"] == "velocity"
    assert document["configuration"]["channel_group"] == 16


def test_the_scripts_measure_and_choose(tmp_path, tiny_calibration):
    import analyze_activations
    import measure_sensitivity

    model, path, statistics_file = tiny_calibration
    found = []
    for name in ("a", "b"):
        output = tmp_path / f"{name}.safetensors"
        measure_sensitivity.main(str(path), str(statistics_file), str(output), asked(), model)
        found.append(output.read_bytes())
    assert found[0] == found[1]
    config = tmp_path / "quant_config_multitier.json"
    analyze_activations.main(
        str(statistics_file), str(config), asked(), sensitivity=[str(tmp_path / "a.safetensors")]
    )
    document = read_json(config, CONFIG_FORMAT)
    assert 4 < document["summary"]["average_bits"] <= 6.0


@pytest.fixture
def tiny_calibration(tmp_path, trajectory, monkeypatch, model, statistics):
    """Model parameters, a trajectory file and a statistics file, of the tiny model."""
    import measure_sensitivity
    from ditquant.activation_statistics import save_statistics

    monkeypatch.setattr(measure_sensitivity, "load_mmdit", lambda spec, dtype: model)
    monkeypatch.setattr(measure_sensitivity, "load_trajectory", lambda path: trajectory)
    save_statistics(tmp_path / "statistics.safetensors", statistics)
    parameters = {"name": "demo", "checkpoint": None, "dtype": "float32"}
    return parameters, tmp_path / "0000.safetensors", tmp_path / "statistics.safetensors"
