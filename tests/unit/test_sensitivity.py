"""Bits under a budget: optimal where that can be checked; the document says what was chosen."""

from __future__ import annotations

import importlib
import itertools
from dataclasses import replace

import numpy as np
import pytest

from ditquant.activations.budget import allocate
from ditquant.activations.configs import make_config
from ditquant.activations.granularity import GRANULARITIES
from ditquant.activations.input_statistics import save_statistics
from ditquant.activations.intervals import predicted_error, range_and_shift
from ditquant.activations.quant_config import CONFIG_FORMAT, load_quant_config
from ditquant.activations.tiers import input_gains
from ditquant.artifacts import read_json, write_json
from ditquant.backend import mx
from ditquant.models.spec import read_spec
from ditquant.network.diffusionkit import load_network
from support.activations import statistics
from support.models import build_network
from support.schemes import multi_tier, params_at, scheme

BITS = (4, 6, 8)


def best_by_trying(errors, sizes, average):
    budget = average * sizes.sum() * (1 + 1e-9)
    return min(
        sum(errors[unit][option] for unit, option in enumerate(options))
        for options in itertools.product(range(3), repeat=len(errors))
        if sum(size * BITS[option] for size, option in zip(sizes, options, strict=True)) <= budget
    )


def random_errors(seed: int, units: int, falling: bool = True) -> np.ndarray:
    """(units, 3): about a sixteenth with two bits more; without `falling` in any order."""
    random = np.random.default_rng(seed)
    errors = np.exp(
        random.normal(0, 2, (units, 1)) - [0, 2.8, 5.5] + random.normal(0, 1, (units, 3))
    )
    return np.sort(errors, axis=1)[:, ::-1] if falling else errors


@pytest.mark.parametrize("average", [4.0, 4.7, 5.5, 6.5, 7.9, 8.0])
@pytest.mark.parametrize("seed", range(8))
def test_within_one_step_of_the_best_of_all_choices(seed, average):
    errors = random_errors(seed, units=7, falling=seed % 2 == 0)
    sizes = np.random.default_rng(seed).integers(1, 20, 7)
    chosen = allocate(errors, sizes, BITS, average)
    assert (sizes * np.array(BITS)[chosen]).sum() <= average * sizes.sum() * (1 + 1e-9)
    found = errors[np.arange(7), chosen].sum()
    best = best_by_trying(errors, sizes, average)
    # What the one step that did not fit would have saved.
    largest_step = (errors.max(axis=1) - errors.min(axis=1)).max()
    assert best <= found * (1 + 1e-12)
    assert found <= best + largest_step


@pytest.mark.parametrize("seed", range(8))
def test_optimal_where_the_budget_is_used_up_along_the_hulls(seed):
    random = np.random.default_rng(seed)
    start = np.exp(random.normal(0, 2, 8))
    # Convex by construction: the second two bits save less than the first.
    errors = np.stack([start, start / 10, start / 100], axis=1)
    sizes = np.full(8, 3)
    for average in (4.5, 5.0, 6.5, 7.0):
        chosen = allocate(errors, sizes, BITS, average)
        assert np.array(BITS)[chosen].mean() == average
        found = errors[np.arange(8), chosen].sum()
        assert found == pytest.approx(best_by_trying(errors, sizes, average), rel=1e-12)


def test_bits_that_do_not_help_are_not_spent():
    errors = np.array([[1.0, 1.0, 1.0], [1.0, 0.5, 0.5], [0.1, 0.2, 0.3]])
    assert allocate(errors, np.ones(3, int), BITS, 8.0).tolist() == [0, 1, 0]


def test_a_step_that_does_not_fit_leaves_room_for_a_smaller_one():
    # The hull of the first goes from 4 to 8 bits at once, which does not fit; 6 do.
    errors = np.array([[1.0, 0.9, 0.0], [1e-3, 1e-3, 1e-3]])
    assert allocate(errors, np.array([2, 2]), BITS, 5.0).tolist() == [1, 0]


def test_an_average_below_the_fewest_bits_is_a_bug():
    with pytest.raises(ValueError, match="below the fewest"):
        allocate(np.ones((2, 3)), np.ones(2, int), BITS, 3.5)


# -------------------------------------------------------------------------------- the document


@pytest.fixture(scope="module")
def made():
    random = np.random.default_rng(0)
    drift = np.geomspace(0.1, 10, 6)[:, None, None]

    def values(width, channels=8):
        return (width * random.standard_normal((6, 200, channels))).astype(np.float32)

    inputs = {
        "quiet": values(0.1),
        "loud": values(20.0),
        "drifting": values(drift),
        "fc2": np.maximum(values(3.0, 32), -0.17).astype(np.float32),
    }
    return statistics(inputs, post_gelu=("fc2",))


def sensitive(made, granularity, rule, average, gains, **options):
    """Tiers by predicted error: weighted by `gains`, or `relative`."""
    tiers = {
        "mode": "sensitivity",
        "average_bits": average,
        "weighting": "relative" if gains is None else "output",
    }
    chosen = scheme(granularity, rule, tiers=tiers, **options)
    return make_config(made, chosen, lambda: gains, lambda: pytest.fail("nothing was measured"))


EQUAL = dict.fromkeys(("quiet", "loud", "drifting", "fc2"), 1.0)


def total(made, document) -> float:
    """The predicted output error of a configuration with scales a step, gains all 1."""
    error = 0.0
    for name, layer in document["layers"].items():
        measured = made.of(name)
        for row, bits in enumerate(layer["bits"]):
            half, shift = range_and_shift(measured, name == "fc2", "absmax", bits)
            mean = predicted_error(measured, half, shift, bits)[row]
            error += mean * measured.count[row]
    return error


def test_bits_go_where_values_are_large(made):
    document = sensitive(made, "step", "absmax", 5.0, EQUAL)
    layers, summary = document["layers"], document["summary"]
    assert set(layers["quiet"]["bits"]) == {4}
    assert set(layers["loud"]["bits"]) == {8}
    drifting = layers["drifting"]["bits"]
    assert drifting == sorted(drifting)
    assert drifting[0] == 4
    assert drifting[-1] > 4
    assert summary["average_bits"] <= 5.0
    assert "loud" in summary["always_a8_layers"]
    assert "drifting" in summary["switching_layers"]
    assert summary["switches"]["drifting"] == (np.diff(drifting) != 0).sum()
    expected = np.std(drifting) / np.mean(drifting)
    assert summary["variability"]["drifting"] == pytest.approx(expected, rel=1e-5)
    assert "quiet" not in summary["variability"]
    assert summary["predicted_error"]["chosen"] == pytest.approx(total(made, document), rel=1e-5)
    assert document["configuration"]["tiers"] == {
        "mode": "sensitivity", "average_bits": 5.0, "weighting": "output",
    }  # fmt: skip


def test_a_layer_whose_weights_do_much_gets_more_bits(made):
    few = sensitive(made, "step", "absmax", 5.0, EQUAL)
    more = sensitive(made, "step", "absmax", 5.0, EQUAL | {"quiet": 1e6})
    assert set(few["layers"]["quiet"]["bits"]) == {4}
    assert set(more["layers"]["quiet"]["bits"]) == {8}


def test_relative_weighting_does_not_look_at_the_size_of_values(made):
    document = sensitive(made, "step", "absmax", 6.0, None)
    # Normal values in other units; the extremes of a sample differ a little.
    errors = [document["layers"][name]["predicted_error"]["A6"] for name in ("quiet", "loud")]
    np.testing.assert_allclose(*errors, rtol=0.6)
    assert document["configuration"]["tiers"]["weighting"] == "relative"


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("average", [4.0, 6.5, 8.0])
def test_the_budget_holds_and_every_granularity_can_be_read(tmp_path, made, granularity, average):
    options = {"groups": 3, "degree": 2}
    document = sensitive(made, granularity, "absmax", average, EQUAL, **options)
    path = tmp_path / "quant_config_multitier.json"
    write_json(path, CONFIG_FORMAT, document)
    config = load_quant_config(path)
    bits = np.array(
        [
            [params_at(config, layer, s).bits for s in config.sigmas]
            for layer in config.layers.values()
        ]
    )
    values = np.array([made.of(name).count for name in config.layers])
    found = float(np.average(bits, weights=values))
    assert found <= average * (1 + 1e-6)
    assert document["summary"]["average_bits"] == pytest.approx(found, rel=1e-5)
    # At the ends there is nothing to choose.
    if average in (4.0, 8.0):
        assert set(bits.ravel()) == {int(average)}
    again = sensitive(made, granularity, "absmax", average, EQUAL, **options)
    assert again == document


def test_better_than_the_threshold_rule_with_as_many_bits(made):
    threshold = multi_tier(made, "step", "absmax", {"linear": [0.2, 30.0], "post_gelu": [2.0, 9.0]})
    # The summary has six digits: a hair more, so that the threshold rule's own choice fits.
    average = threshold["summary"]["average_bits"] + 1e-5
    assert 4 < average < 8
    chosen = sensitive(made, "step", "absmax", average, EQUAL)
    assert total(made, chosen) < total(made, threshold)


def test_inputs_that_are_shared_count_for_all_their_readers(made):
    shared = replace(made, input_of={**made.input_of, "also": "quiet"})
    one = sensitive(made, "step", "absmax", 6.0, EQUAL)
    two = sensitive(shared, "step", "absmax", 6.0, EQUAL | {"also": 2.0})
    single, double = (document["layers"]["quiet"]["predicted_error"] for document in (one, two))
    np.testing.assert_allclose(double["A4"], 3 * np.array(single["A4"]), rtol=1e-5)
    assert two["layers"]["also"]["bits"] == two["layers"]["quiet"]["bits"]
    assert two["summary"]["average_bits"] <= 6.0


def test_gains_are_those_of_the_weights():
    model = build_network()
    gains = input_gains(model)
    linears = model.linears
    assert list(gains) == [linear.name for linear in linears]
    random = np.random.default_rng(0)
    linear = linears[4]
    weight = np.array(linear.module.weight)
    noise = 0.01 * random.standard_normal((20_000, weight.shape[1]))
    # Output error for each squared error of a value; 20,000 draws of 64 channels: within 2 %.
    found = ((noise @ weight.T) ** 2).sum() / (noise**2).sum()
    assert gains[linear.name] == pytest.approx(found, rel=0.02)


@pytest.mark.parametrize(
    ("mode", "weighting"),
    [("threshold", "output"), ("sensitivity", "output"), ("sensitivity", "relative")],
)
def test_the_script_follows_the_mode(tmp_path, mode, weighting):
    script = importlib.import_module("analyze_activations")
    names = [linear.name for linear in load_network(read_spec("demo"), mx.float32).linears]
    values = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    save_statistics(tmp_path / "s.safetensors", statistics(dict.fromkeys(names, values)))
    tiers = {"mode": mode, "average_bits": 5.0, "weighting": weighting}
    model = {"name": "demo", "checkpoint": None, "dtype": "float32"}
    path = tmp_path / "quant_config_multitier.json"
    script.main(
        str(tmp_path / "s.safetensors"),
        str(path),
        scheme(tiers=tiers).params,
        model if weighting == "output" else None,
    )
    document = read_json(path, CONFIG_FORMAT)
    if mode == "threshold":
        expected = {"linear": [6.0, 10.0], "post_gelu": [5.0, 8.0]}
    else:
        expected = {"mode": mode, "average_bits": 5.0, "weighting": weighting}
        assert document["summary"]["average_bits"] == pytest.approx(5.0, abs=0.05)
        # Where all inputs are alike only the weights can tell them apart.
        errors = {layer["predicted_error"]["A8"][0] for layer in document["layers"].values()}
        assert (len(errors) > 1) == (weighting == "output")
    assert document["configuration"]["tiers"] == expected
