"""Balances one block before it is quantized, each fold (`balance`) by its own measured error.

With a_j the largest |x| of channel j of a layer's inputs and w_j the largest |W| of its column:

    SmoothQuant (Xiao et al. 2022, arXiv 2211.10438, eq. 4)  b_j = a_j^strength / w_j^(1 - strength)
    PTQ4DiT (Wu et al. 2024, arXiv 2405.16005)               b_j = (sum_t eta_t a_tj / w_j)^0.5
    AWQ (Lin et al. 2023, arXiv 2306.00978)                  b_j = mean|x_j|^strength

Inputs are divided by b and columns multiplied. A common factor changes nothing, so b has a
geometric mean of 1. No strength is best everywhere: a strong one tames the inputs and leaves the
weights with outliers. So each fold tries some, on inputs that its linears really read, with the
weights rounded to nearest on the recipe's grid and the inputs as they will be (full precision, or
simulated at the recipe's bits).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..activations.input_statistics import Statistics
from ..backend import mx, to_numpy
from ..network.blocks import shared_input
from .balance import Fold, apply_balance, balanced_parameters, folds
from .grids import Grid, fit_scales, fractional_codes, nearest_codes, values_of
from .layer_inputs import sampled_inputs
from .reconstruct import BlockProblem

STRENGTHS = (0.25, 0.5, 0.75)
AWQ_STRENGTHS = tuple(tenth / 10 for tenth in range(11))
# Factors lie within its inverse and it.
LIMIT = 100.0
# Tokens on which a fold's candidates are compared; each channel is seen that often.
_SAMPLED_TOKENS = 1024

# ----------------------------------------------------------------------------------- factors


def normalized(factors: np.ndarray) -> np.ndarray:
    """Scales positive factors to a geometric mean of 1 and clamps them, float32.

    Channels whose factor is 0 or not finite (an input or a column that is always 0) get 1.

    Args:
        factors: (channels,).
    """
    factors = np.asarray(factors, dtype=np.float64)
    usable = np.isfinite(factors) & (factors > 0)
    logarithms = np.zeros_like(factors)
    logarithms[usable] = np.log(factors[usable])
    if usable.any():
        logarithms[usable] -= logarithms[usable].mean()
    return np.clip(np.exp(logarithms), 1 / LIMIT, LIMIT).astype(np.float32)


def smoothquant_factors(
    activation_absmax: np.ndarray, weight_absmax: np.ndarray, strength: float
) -> np.ndarray:
    """b = a^strength / w^(1 - strength), normalized; (channels,) float32.

    Args:
        activation_absmax, weight_absmax: a and w, (channels,).
        strength: 1 makes all channels of the input equally large, 0 all columns of the weight, 0.5
            both alike.
    """
    activation = np.asarray(activation_absmax, dtype=np.float64)
    weight = np.asarray(weight_absmax, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        factors = activation**strength / weight ** (1.0 - strength)
    return normalized(np.where((activation > 0) & (weight > 0), factors, 0.0))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[inverse]


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Rank correlation of two (channels,) arrays, in -1..1; 0 if one of them is constant."""
    ranks = [_ranks(values) - (len(values) - 1) / 2 for values in (one, other)]
    power = np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum())
    return float((ranks[0] * ranks[1]).sum() / power) if power > 0 else 0.0


def salience_weights(activation_absmax: np.ndarray, weight_absmax: np.ndarray) -> np.ndarray:
    """eta = softmax(-rho_t) over steps t (PTQ4DiT), (S,) float64.

    Balancing can do most at steps where large inputs do not meet large weights; those count more.

    Args:
        activation_absmax: (S, channels), by step.
        weight_absmax: (channels,).
    """
    rho = np.array([spearman(row, weight_absmax) for row in activation_absmax])
    weights = np.exp(-(rho - rho.min()))
    return weights / weights.sum()


def csb_factors(activation_absmax: np.ndarray, weight_absmax: np.ndarray) -> np.ndarray:
    """Channel-wise salience balancing: b = (sum_t eta_t a_t / w)^0.5, see `salience_weights`.

    Args:
        activation_absmax: (S, channels), largest |x| of each channel by step.
        weight_absmax: (channels,).

    Returns:
        (channels,) float32.
    """
    eta = salience_weights(activation_absmax, weight_absmax)
    return smoothquant_factors(eta @ activation_absmax, weight_absmax, 0.5)


def weight_absmax(weights: Sequence[mx.array]) -> np.ndarray:
    """Largest |W| of each column over all weights (outputs, channels) that read one input."""
    largest = [mx.max(mx.abs(weight.astype(mx.float32)), axis=0) for weight in weights]
    return to_numpy(mx.max(mx.stack(largest), axis=0))


def fold_absmax(statistics: Statistics, fold: Fold) -> np.ndarray:
    """(S, channels) largest |x| over what all readers of a fold read, at each step."""
    names = {statistics.input_of[linear.name] for linear in fold.readers}
    inputs = [statistics.inputs[name] for name in sorted(names)]
    ends = [np.abs(end) for one in inputs for end in (one.channel_min, one.channel_max)]
    return np.max(ends, axis=0)


# ------------------------------------------------------------------------------------ search


@dataclass(frozen=True)
class Reader:
    """A linear that reads balanced channels.

    Attributes:
        x: (rows, channels) a sample of what it reads at full precision.
        weight: W (outputs, channels).
    """

    x: mx.array
    weight: mx.array


@dataclass(frozen=True)
class Choice:
    """What a search chose.

    Attributes:
        key: the factors with the smallest error by their name or strength; of equal ones the first.
        factors: b, (channels,) float32.
        errors: of all factors that were tried, in the order in which they were given.
    """

    key: str | float
    factors: mx.array
    errors: dict[str | float, float]


def quantized_input(x: mx.array, bits: int | None) -> mx.array:
    """x as a quantizer with one scale for the whole array gives it back, float32.

    Args:
        bits: of its codes -2^(bits-1) .. 2^(bits-1) - 1; None leaves x as it is.
    """
    x = x.astype(mx.float32)
    if bits is None:
        return x
    last = 2 ** (bits - 1) - 1
    scale = mx.maximum(mx.max(mx.abs(x)), 1e-6) / last
    return mx.clip(mx.round(x / scale), -last - 1, last) * scale


def balanced_error(
    readers: Sequence[Reader], factors: mx.array, grid: Grid, activation_bits: int | None = None
) -> float:
    """Sum over readers of |q_a(x / b) q_w(W diag(b))^T - x W^T|^2 / |x W^T|^2.

    Args:
        factors: b, (channels,).
        grid: q_w rounds to nearest on it.
        activation_bits: of q_a, one scale for each reader's whole sample; None: full precision.
    """
    total = mx.array(0.0)
    for reader in readers:
        x, weight = reader.x.astype(mx.float32), reader.weight.astype(mx.float32)
        scaled = weight * factors
        scales = fit_scales(scaled, grid)
        rounded = values_of(nearest_codes(fractional_codes(scaled, scales), grid.bits), scales)
        output = quantized_input(x / factors, activation_bits) @ rounded.T
        exact = x @ weight.T
        total = total + mx.sum((output - exact) ** 2) / mx.maximum(mx.sum(exact**2), 1e-30)
    return total.item()


def choose_factors(
    readers: Sequence[Reader],
    tried: Mapping[str | float, np.ndarray],
    grid: Grid,
    activation_bits: int | None = None,
) -> Choice:
    """The factors b with the smallest `balanced_error`.

    Args:
        readers: all linears of one fold, with x of the same channels.
        tried: (channels,) each; give the neutral ones first, so that nothing is balanced that does
            not gain from it.
    """
    errors = {
        key: balanced_error(readers, mx.array(factors), grid, activation_bits)
        for key, factors in tried.items()
    }
    best = min(errors, key=errors.__getitem__)
    return Choice(best, mx.array(tried[best]), errors)


def candidates(
    kind: str, readers: Sequence[Reader], absmax: np.ndarray | None
) -> dict[str | float, np.ndarray]:
    """The factors that a way to balance tries, no balancing (b = 1) first.

    Args:
        kind: "awq", "smoothquant" or "csb".
        absmax: (S, channels) largest |x| in calibration by step; the samples of `readers` may be
            few. `awq` needs none.

    Returns:
        Strength, or "none" and "csb" -> b, (channels,) float32.

    Raises:
        ValueError: `absmax` is missing.
    """
    if kind == "awq":
        distinct = list({id(reader.x): reader.x for reader in readers}.values())
        x = mx.concatenate(distinct).astype(mx.float32)
        magnitude = to_numpy(mx.mean(mx.abs(x), axis=0)).astype(np.float64)
        return {strength: normalized(magnitude**strength) for strength in AWQ_STRENGTHS}
    if absmax is None:
        raise ValueError(f"balance: {kind} needs activation statistics")
    weights = weight_absmax([reader.weight for reader in readers])
    ones = np.ones(len(weights), dtype=np.float32)
    if kind == "csb":
        return {"none": ones, "csb": csb_factors(absmax, weights)}
    # The formula would give 1 / w for a strength of 0.
    tried: dict[str | float, np.ndarray] = {0.0: ones}
    for strength in STRENGTHS:
        tried[strength] = smoothquant_factors(absmax.max(axis=0), weights, strength)
    return tried


# ------------------------------------------------------------------------------------- blocks


@dataclass(frozen=True)
class BalancedBlock:
    """A block problem after balancing.

    Attributes:
        problem: on the balanced weights; its outputs at full precision are those of before.
        parameters: parameter path inside the block -> new array, for all that balancing changed.
        choices: fold's name -> what its search chose.
    """

    problem: BlockProblem
    parameters: dict[str, mx.array]
    choices: dict[str, Choice]


def balanced_block(
    problem: BlockProblem,
    kind: str,
    activation_bits: int | None,
    statistics: Statistics | None,
    seed: int,
) -> BalancedBlock:
    """Chooses factors for every fold and balances the block in place.

    Args:
        kind: "smoothquant", "csb" or "awq".
        activation_bits: the inputs' bits while factors are compared; None: full precision.
        statistics: of the activation track, at full precision; `awq` needs none.
        seed: of the sampled tokens.
    """
    grids = {one.name: grid for one, grid in zip(problem.linears, problem.grids, strict=True)}
    samples = sampled_inputs(problem, problem.train, _SAMPLED_TOKENS, seed)
    choices: dict[str, Choice] = {}
    for fold in folds(problem.block):
        # A fold whose readers keep their precision has nothing to gain.
        quantized = [linear for linear in fold.readers if linear.name in grids]
        if not quantized:
            continue
        readers = [Reader(samples[shared_input(one)], one.module.weight) for one in quantized]
        absmax = None if statistics is None else fold_absmax(statistics, fold)
        tried = candidates(kind, readers, absmax)
        grid = grids[quantized[0].name]
        choices[fold.name] = choose_factors(readers, tried, grid, activation_bits)
    factors = {name: choice.factors for name, choice in choices.items()}
    parameters = balanced_parameters(problem.block, factors)
    apply_balance(problem.block, factors)
    return BalancedBlock(problem.reread(), parameters, choices)
