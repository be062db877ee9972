"""How scales follow sigma: groups, polynomials, ranges at run time; and the file that says so."""

from __future__ import annotations

import importlib
import itertools

import numpy as np
import pytest

from ditquant.activations.granularity import GRANULARITIES
from ditquant.activations.input_statistics import save_statistics
from ditquant.activations.intervals import GELU_LOW, range_and_shift
from ditquant.activations.polynomials import evaluate, least_squares, upper_fit, variable_of
from ditquant.activations.quant_config import CONFIG_FORMAT, load_quant_config, parse_quant_config
from ditquant.activations.quant_params import QuantParams, largest_code
from ditquant.activations.segments import grouped, segment
from ditquant.artifacts import read_json, write_json
from ditquant.backend import mx, to_numpy
from ditquant.errors import UserError
from ditquant.network.sampling import sigma_schedule
from support.activations import input_statistics, statistics
from support.schemes import fake_quantize_dynamic, multi_tier, params_at, scheme, single_tier

STEPS = 10


def drifting(steps: int = STEPS, factor: float = 10.0, seed: int = 0) -> np.ndarray:
    """(steps, 64, 8) normal values whose range grows `factor`-fold over the steps."""
    random = np.random.default_rng(seed)
    widths = np.geomspace(1, factor, steps)[:, None, None]
    return (widths * random.standard_normal((steps, 64, 8))).astype(np.float32)


@pytest.fixture(scope="module")
def made():
    gelu = np.maximum(drifting(seed=3), -0.17).astype(np.float32)
    return statistics(
        {"a": drifting(), "b": drifting(seed=1)[::-1], "fc2": gelu}, post_gelu=("fc2",)
    )


def loaded(tmp_path, document):
    path = tmp_path / "quant_config.json"
    write_json(path, CONFIG_FORMAT, document)
    return load_quant_config(path)


# ------------------------------------------------------------------------------------- groups


def loss(log_ranges: np.ndarray, group_of: list[int]) -> float:
    groups = np.array(group_of)
    return sum(
        (part.max(axis=1, keepdims=True) - part).sum()
        for part in (log_ranges[:, groups == number] for number in set(group_of))
    )


@pytest.mark.parametrize("groups", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("seed", range(4))
def test_groups_lose_the_fewest_bits_of_all_partitions(groups, seed):
    log_ranges = np.random.default_rng(seed).standard_normal((3, 8))
    found = segment(log_ranges, groups)
    assert found[0] == 0
    assert found[-1] == groups - 1
    assert set(np.diff(found)) <= {0, 1}
    best = min(
        loss(log_ranges, np.searchsorted(cuts, np.arange(8), side="right").tolist())
        for cuts in itertools.combinations(range(1, 8), groups - 1)
    )
    assert loss(log_ranges, found) == pytest.approx(best, rel=1e-9, abs=1e-9)


def test_groups_are_cut_where_ranges_jump():
    levels = np.log2([[1, 1.1, 1, 4, 4.2, 4, 4.1, 1, 1]])
    assert segment(levels, 3) == [0, 0, 0, 1, 1, 1, 1, 2, 2]


def test_more_groups_than_steps_are_one_a_step():
    assert segment(np.array([[1.0, 2.0, 1.0]]), 9) == [0, 1, 2]


def test_a_group_has_the_statistics_of_its_steps():
    measured = input_statistics(drifting())
    both = grouped(measured, [0] * 4 + [1] * 6)
    np.testing.assert_array_equal(both.absmax[0], measured.absmax[:4].max())
    np.testing.assert_array_equal(both.histogram[1], measured.histogram[4:].sum(axis=0))
    one, pooled = grouped(measured, [0] * STEPS), measured.pooled()
    for field, values in vars(pooled).items():
        np.testing.assert_array_equal(getattr(one, field), values)


@pytest.mark.parametrize(("num_steps", "shift"), [(20, 3.0), (28, 3.0), (50, 3.0), (28, 1.0)])
def test_groups_are_looked_up_by_sigma(tmp_path, made, num_steps, shift):
    document = single_tier(made, 8, "group", "absmax", groups=4)
    config = loaded(tmp_path, document)
    layer = config.layers["a"]
    assert len(layer.scales) == 4
    groups = document["groups"]
    assert groups[0] == 0
    assert groups[-1] == 3
    for sigma in sigma_schedule(num_steps, shift)[:-1].tolist():
        nearest = int(np.abs(np.array(document["sigmas"]) - sigma).argmin())
        assert params_at(config, layer, sigma).scale == layer.scales[groups[nearest]]


def test_a_group_covers_its_steps_and_as_many_groups_as_steps_are_granularity_step(made):
    document = single_tier(made, 8, "group", "absmax", groups=4)
    groups = np.array(document["groups"])
    for name, layer in document["layers"].items():
        half, _ = range_and_shift(made.of(name), name == "fc2", "absmax", 8)
        scales = np.array(layer["scales"])[groups] * largest_code(8)
        assert (scales >= half * (1 - 1e-6)).all()
    every = single_tier(made, 8, "group", "absmax", groups=STEPS)
    assert every["layers"] == single_tier(made, 8, "step", "absmax")["layers"]


# --------------------------------------------------------------------------------- polynomials


@pytest.mark.parametrize("degree", range(6))
@pytest.mark.parametrize("variable", ["sigma", "log_sigma"])
def test_a_polynomial_never_understates_a_measured_range(tmp_path, made, degree, variable):
    options = {"degree": degree, "variable": variable}
    config = loaded(tmp_path, single_tier(made, 8, "polynomial", "absmax", **options))
    for name, layer in config.layers.items():
        measured = made.of(name)
        for step, sigma in enumerate(config.sigmas):
            numbers = params_at(config, layer, sigma)
            reach = numbers.scale * largest_code(8)
            assert numbers.shift + reach >= measured.maximum[step]
            assert numbers.shift - reach <= measured.minimum[step]


def test_a_fit_is_exact_where_the_drift_is_a_polynomial():
    x = variable_of(np.linspace(1, 0.05, 25), "log_sigma")
    log_range = 1.5 - 0.7 * x + 0.2 * x**2
    np.testing.assert_allclose(least_squares(x, log_range, 2), [1.5, -0.7, 0.2], atol=1e-8)
    over = evaluate(upper_fit(x, log_range, 2), x) - log_range
    # Ten digits of the coefficients, times 3^2 for ln sigma = -3, and the margin of 1e-6.
    assert over.min() > 0
    assert over.max() < 2e-6


def least_excess(x: np.ndarray, log_range: np.ndarray, degree: int) -> float:
    """Of all polynomials above the values: a vertex of the linear program touches degree + 1."""
    best = np.inf
    for touched in itertools.combinations(range(len(x)), degree + 1):
        rows = list(touched)
        above = evaluate(least_squares(x[rows], log_range[rows], degree), x) - log_range
        if above.min() > -1e-8:
            best = min(best, above.mean())
    return float(best)


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_a_fit_is_close_above_the_ranges(degree):
    x = np.linspace(1, 0.05, 12)
    random = np.random.default_rng(degree)
    raised, optimal, found = [], [], []
    for _ in range(20):
        # Ranges that jump at the first step, as those of real models do.
        log_range = np.cumsum(random.normal(0, 0.1, 12)) + 0.8 * (x == 1)
        plain = evaluate(least_squares(x, log_range, degree), x)
        raised.append((plain - log_range).mean() + (log_range - plain).max())
        optimal.append(least_excess(x, log_range, degree))
        found.append((evaluate(upper_fit(x, log_range, degree), x) - log_range).mean())
    # Ten digits of coefficients, and the margin.
    assert (np.array(found) >= np.array(optimal) - 1e-7).all()
    assert (np.array(found) <= np.array(raised) + 2e-6).all()
    # Most of what raising a plain fit loses is won.
    assert np.mean(found) - np.mean(optimal) < 0.25 * (np.mean(raised) - np.mean(optimal))


def test_a_degree_beyond_the_measured_steps_is_the_exact_fit():
    assert len(least_squares(np.array([1.0, 0.5, 0.2]), np.array([1.0, 2.0, 4.0]), 5)) == 3


def test_beyond_the_measured_sigmas_a_polynomial_stays_at_its_end(tmp_path, made):
    config = loaded(tmp_path, single_tier(made, 8, "polynomial", "absmax", degree=3))
    layer = config.layers["a"]
    assert params_at(config, layer, 0.001) == params_at(config, layer, config.sigmas[-1])
    assert params_at(config, layer, 1.5) == params_at(config, layer, config.sigmas[0])


# ------------------------------------------------------------------------------ at run time


@pytest.mark.parametrize("shift", [0.0, 1.3])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("granularity", "axes"), [("dynamic-tensor", (1, 2, 3)), ("dynamic-token", (3,))]
)
def test_dynamic_ranges_are_those_of_the_values(granularity, axes, bits, shift):
    x = np.random.default_rng(0).standard_normal((2, 5, 1, 16)).astype(np.float32)
    found = to_numpy(fake_quantize_dynamic(mx.array(x), granularity, bits, shift))
    centered = x - np.float32(shift)
    scale = np.abs(centered).max(axis=axes, keepdims=True) / np.float32(largest_code(bits))
    expected = np.rint(centered / scale) * scale + np.float32(shift)
    # float32 rounds a value below 8 by 2^-21 at most, in three operations.
    np.testing.assert_allclose(found, expected, atol=3 * 2.0**-21)


@pytest.mark.parametrize("granularity", ["dynamic-tensor", "dynamic-token"])
def test_a_picture_does_not_depend_on_the_others_in_its_batch(granularity):
    x = mx.random.normal((2, 7, 1, 16), key=mx.random.key(1))
    x = x * mx.array([1.0, 50.0])[:, None, None, None]
    together = fake_quantize_dynamic(x, granularity, 8)
    alone = fake_quantize_dynamic(x[:1], granularity, 8)
    assert mx.array_equal(together[:1], alone)
    zeros = mx.zeros((1, 2, 4))
    assert mx.array_equal(fake_quantize_dynamic(zeros, granularity, 8), zeros)


def test_only_bits_and_shifts_of_dynamic_ranges_are_in_the_file(tmp_path, made):
    for granularity in ("dynamic-tensor", "dynamic-token"):
        document = single_tier(made, 6, granularity, "absmax")
        assert set(document["layers"]["a"]) == {"input", "channels", "bits", "input_amax"}
        more = set(document["layers"]["fc2"]) - set(document["layers"]["a"])
        assert more == {"shifts", "unsigned"}
        config = loaded(tmp_path, document)
        assert params_at(config, config.layers["a"], 0.5).scale is None
        assert params_at(config, config.layers["a"], 0.5) == QuantParams(6, None, 0.0)
        # Lowest value and unsigned codes: the middle of a range that is not known yet cannot be.
        fc2 = params_at(config, config.layers["fc2"], 0.5)
        assert fc2 == QuantParams(6, None, GELU_LOW, unsigned=True)


# ----------------------------------------------------------------------------------- the file


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_tiers_are_looked_up_with_every_granularity(tmp_path, made, granularity):
    limits = {"linear": [6.0, 15.0], "post_gelu": [2.0, 6.0]}
    document = multi_tier(made, granularity, "absmax", limits, groups=4, degree=3)
    config = loaded(tmp_path, document)
    bits = np.array(
        [
            [params_at(config, layer, s).bits for s in config.sigmas]
            for layer in config.layers.values()
        ]
    )
    shares = {f"A{b}": pytest.approx((bits == b).mean(), rel=1e-5) for b in (4, 6, 8)}
    assert document["summary"]["shares"] == shares
    assert len(document["summary"]["layers_per_sigma"]["A4"]) == STEPS


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_record_says_what_was_used(made, granularity):
    record = single_tier(made, 8, granularity, "absmax", groups=7, degree=2, variable="log_sigma")
    extra = {
        "group": {"groups": 7},
        "polynomial": {"degree": 2, "variable": "log_sigma"},
    }.get(granularity, {})
    base = {"bits": 8, "granularity": granularity, "range": "absmax"}
    assert record["configuration"] == base | extra
    assert ("groups" in record) == GRANULARITIES[granularity].is_grouped


@pytest.mark.parametrize(
    ("granularity", "change", "message"),
    [
        ("step", {"configuration": {"granularity": "block"}}, "by 'block'.* does not know"),
        ("polynomial", {"configuration": {"granularity": "step"}}, "lacks or garbles 'scales'"),
        (
            "step",
            {"configuration": {"granularity": "polynomial", "degree": 3}},
            "lacks or garbles 'log_range'",
        ),
        ("step", {"configuration": {"granularity": "group"}}, "lacks or garbles 'groups'"),
        ("group", {"groups": [0, 2]}, "one number for each of the 10 sigmas"),
        ("group", {"groups": [0] * 4 + [2] * 6}, "rising by 0 or 1"),
        ("group", {"groups": [0] * 10}, "each of the 1 groups; found 4, 4 and 4"),
        ("step", {"sigmas": []}, "sigmas must be positive and descend"),
        ("step", {"sigmas": [0.1, 1.0]}, "sigmas must be positive and descend"),
        ("step", {"sigmas": ["high"]}, "garbles could not convert"),
        ("step", {"layers": 3}, "lacks or garbles"),
    ],
)
def test_a_foreign_or_garbled_file_is_refused(tmp_path, made, granularity, change, message):
    document = single_tier(made, 8, granularity, "absmax", groups=4) | change
    with pytest.raises(UserError, match=message):
        loaded(tmp_path, document)


@pytest.mark.parametrize(
    ("granularity", "change", "message"),
    [
        ("polynomial", {"log_range": []}, "needs coefficients"),
        ("polynomial", {"bits": [8, 8]}, "for each of the 10 sigmas; found 4 and 2"),
        ("polynomial", {"log_range": [float("nan")]}, "not finite"),
        ("dynamic-token", {"bits": [8, 8]}, "found 2, 0 and 2"),
        ("dynamic-token", {"bits": []}, "found 0, 0 and 0"),
    ],
)
def test_entries_that_do_not_fit_are_refused(made, granularity, change, message):
    document = single_tier(made, 8, granularity, "absmax")
    document["layers"]["a"] |= change
    with pytest.raises(UserError, match=message):
        parse_quant_config(document, "quant_config.json")


def test_the_script_passes_every_option_on(tmp_path, made):
    script = importlib.import_module("analyze_activations")
    save_statistics(tmp_path / "s.safetensors", made)
    options = {"groups": 3, "degree": 1, "variable": "log_sigma", "shift": "error"}
    for granularity in ("group", "polynomial"):
        path = tmp_path / f"{granularity}.json"
        chosen = scheme(granularity, "mse", 6, **options)
        script.main(str(tmp_path / "s.safetensors"), str(path), chosen.params)
        document = read_json(path, CONFIG_FORMAT)
        expected = single_tier(made, 6, granularity, "mse", **options)
        assert {key: document[key] for key in expected} == expected
