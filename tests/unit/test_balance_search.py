"""Balancing factors: the published formulas, and strengths that measured errors choose."""

from __future__ import annotations

import numpy as np
import pytest

from ditquant.activations.histogram import NUM_BINS
from ditquant.activations.input_statistics import Statistics, of_one_image, to_fixed
from ditquant.backend import mx
from ditquant.weights.balance import folds
from ditquant.weights.balance_search import (
    Reader,
    balanced_error,
    candidates,
    choose_factors,
    csb_factors,
    fold_absmax,
    normalized,
    quantized_input,
    salience_weights,
    smoothquant_factors,
    spearman,
    weight_absmax,
)
from ditquant.weights.grids import Grid
from support.models import build_network

GRID = Grid("group", 4, 64)


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).lognormal(size=shape)


# ----------------------------------------------------------------------------------- formulas


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.5, 1.0])
def test_smoothquants_formula(strength):
    activation, weight = random(0, 64), random(1, 64)
    factors = smoothquant_factors(activation, weight, strength)
    published = activation**strength / weight ** (1 - strength)
    assert factors / factors[0] == pytest.approx(published / published[0], rel=1e-6)
    assert np.log(factors).mean() == pytest.approx(0, abs=1e-6)
    assert factors.dtype == np.float32


def test_half_strength_makes_inputs_and_weights_alike():
    activation, weight = random(2, 64), random(3, 64)
    factors = smoothquant_factors(activation, weight, 0.5)
    ratio = (activation / factors) / (weight * factors)
    assert ratio == pytest.approx(np.full(64, ratio[0]), rel=1e-5)


def test_factors_are_clamped_and_dead_channels_left_alone():
    activation, weight = np.array([1e9, 1.0, 0.0, 1.0]), np.array([1.0, 1.0, 1.0, 0.0])
    factors = smoothquant_factors(activation, weight, 0.5)
    assert factors.tolist() == pytest.approx([100.0, 0.01, 1.0, 1.0])
    assert normalized(np.zeros(3)).tolist() == [1.0, 1.0, 1.0]


def test_rank_correlation():
    x = np.array([0.1, 0.5, 0.7, 2.0])
    assert spearman(x, x**3) == pytest.approx(1.0)
    assert spearman(x, -x) == pytest.approx(-1.0)
    assert spearman(x, np.ones(4)) == 0.0
    # ties share their mean rank: 1.5, 1.5, 3, 4 against 1, 2, 3, 4
    tied = np.array([1.0, 1.0, 2.0, 3.0])
    assert spearman(tied, x) == pytest.approx(4.5 / np.sqrt(4.5 * 5.0))


def test_steps_where_large_inputs_meet_small_weights_count_most():
    weight = np.sort(random(4, 32))
    agreeing, opposite, mixed = weight * 3, weight[::-1] * 2, random(5, 32)
    steps = np.stack([agreeing, opposite, mixed])
    eta = salience_weights(steps, weight)
    rho = np.array([1.0, -1.0, spearman(mixed, weight)])
    assert eta == pytest.approx(np.exp(-rho) / np.exp(-rho).sum())
    # and the factors are SmoothQuant's of the weighted salience
    expected = smoothquant_factors(eta @ steps, weight, 0.5)
    assert np.array_equal(csb_factors(steps, weight), expected)


# --------------------------------------------------------------------------------- statistics


def measured(low: np.ndarray, high: np.ndarray):
    steps = len(low)
    counts, ones = np.zeros((steps, NUM_BINS), dtype=np.int64), to_fixed(np.ones(steps))
    return of_one_image(
        channel_min=low.astype(np.float32),
        channel_max=high.astype(np.float32),
        sum_mean_square=ones,
        histogram=counts,
        token_histogram=counts,
    )


def test_extremes_of_what_a_folds_readers_read():
    block = build_network().blocks[0]
    by_name = {fold.name: fold for fold in folds(block)}
    names = {
        "mm00.img.attn.q_proj": 1.0,
        "mm00.img.attn.o_proj": 2.0,
        "mm00.txt.attn.o_proj": 3.0,
    }
    image = [f"mm00.img.attn.{part}_proj" for part in "qkv"]
    inputs = {
        name: measured(
            np.tile([[-size, -0.5], [0.0, -7.0]], (1, 32)), np.tile([[size / 2, 4.0]], (2, 32))
        )
        for name, size in names.items()
    }
    input_of = dict.fromkeys(image, image[0]) | {name: name for name in names}
    sigmas = np.ones(2, np.float32)
    statistics = Statistics("m", ("0",), (0, 1), sigmas, input_of, frozenset(), inputs)
    expected = np.tile([[1.0, 4.0], [0.5, 7.0]], (1, 32))
    assert np.array_equal(fold_absmax(statistics, by_name["img.qkv"]), expected)
    # both streams are read through one b: the larger of the two
    expected = np.tile([[3.0, 4.0], [1.5, 7.0]], (1, 32))
    assert np.array_equal(fold_absmax(statistics, by_name["o"]), expected)


def test_weights_that_read_one_input_count_together():
    weights = [mx.array([[1.0, -5.0], [2.0, 0.0]]), mx.array([[-3.0, 4.0]])]
    assert weight_absmax(weights).tolist() == [3.0, 5.0]


# ------------------------------------------------------------------------------------- search


def readers(outlier: float, seed: int = 0, outputs: int = 48) -> list[Reader]:
    """Three linears that read one input with a few channels `outlier` times larger."""
    keys = mx.random.split(mx.random.key(seed), 5)
    size = mx.where(mx.arange(128) % 37 == 5, outlier, 1.0)
    x = mx.random.normal((300, 128), key=keys[0]) * size
    return [Reader(x, 0.1 * mx.random.normal((outputs, 128), key=key)) for key in keys[1:4]]


def absmax(given: list[Reader]) -> np.ndarray:
    """At a single step."""
    return np.array(mx.max(mx.abs(given[0].x), axis=0, keepdims=True))


def test_the_error_is_that_of_the_outputs():
    given = readers(20.0)
    factors = mx.array(smoothquant_factors(absmax(given)[0], np.ones(128), 0.5))
    # Squared errors follow the step: four bits more make it 17 times finer.
    coarse, fine = (balanced_error(given, factors, Grid("group", bits, 64)) for bits in (4, 8))
    assert coarse / fine == pytest.approx(17**2, rel=0.25)
    rows = [Reader(reader.x, mx.zeros_like(reader.weight)) for reader in given]
    assert balanced_error(rows, factors, GRID) == 0.0


def test_outliers_are_balanced_where_activations_are_quantized():
    given = readers(60.0)
    choice = choose_factors(given, candidates("smoothquant", given, absmax(given)), GRID, 8)
    assert choice.key > 0
    assert choice.errors[choice.key] == min(choice.errors.values())
    assert choice.errors[choice.key] < 0.7 * choice.errors[0.0]
    assert list(choice.errors) == [0.0, 0.25, 0.5, 0.75]
    again = balanced_error(given, choice.factors, GRID, 8)
    assert again == pytest.approx(choice.errors[choice.key])


def test_nothing_is_balanced_without_need():
    """Equal weights on the grid: any factor only makes them harder to round."""
    levels = mx.arange(128) % 16 - 7.0
    even = Reader(mx.random.normal((64, 128), key=mx.random.key(0)), mx.stack([levels] * 8) / 64)
    choice = choose_factors([even], candidates("smoothquant", [even], absmax([even])), GRID)
    assert choice.key == 0.0
    assert mx.array_equal(choice.factors, mx.ones(128))


def test_the_first_of_equal_candidates_is_taken():
    given = readers(1.0)
    ones = np.ones(128, dtype=np.float32)
    assert choose_factors(given, {"none": ones, "also none": ones}, GRID).key == "none"


def test_awqs_search_protects_channels_that_matter():
    given = readers(20.0)
    choice = choose_factors(given, candidates("awq", given, None), GRID)
    assert choice.key > 0
    assert choice.errors[choice.key] < 0.6 * choice.errors[0.0]
    held_out = [
        Reader(other.x, reader.weight)
        for other, reader in zip(readers(20.0, 9), given, strict=True)
    ]
    before, after = (balanced_error(held_out, b, GRID) for b in (mx.ones(128), choice.factors))
    assert after < 0.7 * before


def test_simulated_inputs():
    x = mx.array([[-1.27, 0.004, 0.006, 0.5]])
    assert np.array(quantized_input(x, 8))[0] == pytest.approx([-1.27, 0.0, 0.01, 0.5], abs=1e-6)
    assert mx.array_equal(quantized_input(x, None), x)


def test_awqs_factors_are_powers_of_the_mean_magnitude():
    x = mx.array([[1.0, -4.0, 0.0, 16.0], [1.0, 4.0, 0.0, -16.0]])
    tried = candidates("awq", [Reader(x, mx.ones((2, 4)))], None)
    assert tried[0.5] == pytest.approx([0.5, 1.0, 1.0, 2.0])
    assert tried[0.0] == pytest.approx(np.ones(4))
    assert list(tried) == [tenth / 10 for tenth in range(11)]
