"""Factors for channel balancing from channel extremes, as published.

With a_j the largest |x| of channel j of a layer's inputs and w_j the largest |W| of its column:

    SmoothQuant (Xiao et al. 2022, arXiv 2211.10438, eq. 4)  b_j = a_j^strength / w_j^(1 - strength)
    PTQ4DiT (Wu et al. 2024, arXiv 2405.16005)               b_j = (sum_t eta_t a_tj / w_j)^0.5

Inputs are divided by b and columns multiplied (`balance`). A common factor changes nothing, so b
has a geometric mean of 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..activations.input_statistics import InputStatistics, Statistics
from ..backend import mx, to_numpy
from .balance import Fold


def normalized(factors: np.ndarray, limit: float) -> np.ndarray:
    """Scales positive factors to a geometric mean of 1 and clamps them, float32.

    Channels whose factor is 0 or not finite (an input or a column that is always 0) get 1.

    Args:
        factors: (channels,).
        limit: the result lies in [1 / limit, limit].
    """
    factors = np.asarray(factors, dtype=np.float64)
    usable = np.isfinite(factors) & (factors > 0)
    logarithms = np.zeros_like(factors)
    logarithms[usable] = np.log(factors[usable])
    if usable.any():
        logarithms[usable] -= logarithms[usable].mean()
    return np.clip(np.exp(logarithms), 1 / limit, limit).astype(np.float32)


def smoothquant_factors(
    activation_absmax: np.ndarray,
    weight_absmax: np.ndarray,
    strength: float,
    limit: float = 100.0,
) -> np.ndarray:
    """b = a^strength / w^(1 - strength), geometric mean 1, clamped; (channels,) float32.

    Args:
        activation_absmax, weight_absmax: a and w, (channels,).
        strength: 1 makes all channels of the input equally large, 0 all columns of the weight, 0.5
            both alike.
        limit: see `normalized`.
    """
    activation = np.asarray(activation_absmax, dtype=np.float64)
    weight = np.asarray(weight_absmax, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        factors = activation**strength / weight ** (1.0 - strength)
    return normalized(np.where((activation > 0) & (weight > 0), factors, 0.0), limit)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[inverse]


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Rank correlation of two (channels,) arrays, in -1..1; 0 if one of them is constant."""
    ranks = [_ranks(values) - (len(values) - 1) / 2 for values in (one, other)]
    power = np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum())
    return float((ranks[0] * ranks[1]).sum() / power) if power > 0 else 0.0


def step_weights(
    activation_absmax: np.ndarray, weight_absmax: np.ndarray, temperature: float = 1.0
) -> np.ndarray:
    """eta = softmax(-rho_t / tau) over steps t (PTQ4DiT), (S,) float64.

    Balancing can do most at steps where large inputs do not meet large weights; those count more.

    Args:
        activation_absmax: (S, channels), by step.
        weight_absmax: (channels,).
        temperature: tau; the paper's is 1. A large one averages over steps.
    """
    rho = np.array([spearman(row, weight_absmax) for row in activation_absmax])
    weights = np.exp(-(rho - rho.min()) / temperature)
    return weights / weights.sum()


def csb_factors(
    activation_absmax: np.ndarray,
    weight_absmax: np.ndarray,
    temperature: float = 1.0,
    limit: float = 100.0,
) -> np.ndarray:
    """Channel-wise salience balancing: b = (sum_t eta_t a_t / w)^0.5, see `step_weights`.

    Args:
        activation_absmax: (S, channels), largest |x| of each channel by step.
        weight_absmax: (channels,).
        limit: see `normalized`.

    Returns:
        (channels,) float32.
    """
    eta = step_weights(activation_absmax, weight_absmax, temperature)
    return smoothquant_factors(eta @ activation_absmax, weight_absmax, 0.5, limit)


# ------------------------------------------------------------------- what a fold is made from


def weight_absmax(weights: Sequence[mx.array]) -> np.ndarray:
    """Largest |W| of each column over all weights (outputs, channels) that read one input."""
    largest = [mx.max(mx.abs(weight.astype(mx.float32)), axis=0) for weight in weights]
    return to_numpy(mx.max(mx.stack(largest), axis=0))


def channel_absmax(measured: InputStatistics) -> np.ndarray:
    """(S, channels) largest |x| of each channel at each step."""
    return np.maximum(np.abs(measured.channel_min), np.abs(measured.channel_max))


def fold_absmax(statistics: Statistics, fold: Fold) -> np.ndarray:
    """(S, channels) largest |x| over what all readers of a fold read, at each step."""
    inputs = {statistics.input_of[linear.name] for linear in fold.readers}
    return np.max([channel_absmax(statistics.inputs[name]) for name in sorted(inputs)], axis=0)


def midrange(measured: InputStatistics) -> np.ndarray:
    """z = (min + max) / 2 of each channel over all steps, (channels,) float32.

    The shift for fc2's inputs (TaQ-DiT, arXiv 2411.14172, which averages it over batches).
    """
    pooled = measured.pooled()
    return ((pooled.channel_min[0] + pooled.channel_max[0]) / 2).astype(np.float32)
