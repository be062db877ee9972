"""Which balancing is worth it: chosen by the error of the layers that it touches.

No strength is best everywhere: a strong one tames the inputs and leaves the weights with outliers.
So each fold tries some, on inputs that its linears really read, with the weights rounded to nearest
on the recipe's grid and the inputs as they will be (full precision, or simulated at 8 bits).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from ..activations.intervals import largest_code
from ..backend import mx
from .awq import awq_factors, mean_magnitude
from .balance_factors import smoothquant_factors, weight_absmax
from .grids import Grid, fit_scales, steps_of, values_of
from .rounding import nearest_codes

Key = TypeVar("Key", bound=Hashable)

STRENGTHS = (0.0, 0.25, 0.5, 0.75)
AWQ_STRENGTHS = tuple(tenth / 10 for tenth in range(11))


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
class Choice(Generic[Key]):
    """What a search chose.

    Attributes:
        key: the candidate with the smallest error; of equal ones the first.
        vector: its factors or shift, (channels,) float32.
        errors: every candidate's error, in the order in which they were given.
    """

    key: Key
    vector: mx.array
    errors: dict[Key, float]


def quantized_input(x: mx.array, bits: int | None, centered: bool = False) -> mx.array:
    """x as a quantizer with one scale for the whole array gives it back, float32.

    Args:
        bits: of its codes -2^(bits-1) .. 2^(bits-1) - 1; None leaves x as it is.
        centered: code 0 stands for the middle of x's range instead of 0 (inputs behind GELU, see
            `ranges`).
    """
    x = x.astype(mx.float32)
    if bits is None:
        return x
    middle = (mx.max(x) + mx.min(x)) / 2 if centered else mx.array(0.0)
    last = largest_code(bits)
    scale = mx.maximum(mx.max(mx.abs(x - middle)), 1e-6) / last
    return mx.clip(mx.round((x - middle) / scale), -last - 1, last) * scale + middle


def _rounded(weight: mx.array, grid: Grid) -> mx.array:
    scales = fit_scales(weight, grid)
    return values_of(nearest_codes(steps_of(weight, scales), grid.levels), scales)


def _relative_error(exact: mx.array, output: mx.array) -> mx.array:
    return mx.sum((output - exact) ** 2) / mx.maximum(mx.sum(exact**2), 1e-30)


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
        output = quantized_input(x / factors, activation_bits) @ _rounded(weight * factors, grid).T
        total = total + _relative_error(x @ weight.T, output)
    return total.item()


def choose_factors(
    readers: Sequence[Reader],
    candidates: Mapping[Key, np.ndarray],
    grid: Grid,
    activation_bits: int | None = None,
) -> Choice[Key]:
    """The candidate factors b with the smallest `balanced_error`.

    Args:
        readers: all linears of one fold, with x of the same channels.
        candidates: (channels,) each; give the neutral ones first, so that nothing is balanced that
            does not gain from it.
    """
    errors = {
        key: balanced_error(readers, mx.array(factors), grid, activation_bits)
        for key, factors in candidates.items()
    }
    best = min(errors, key=errors.__getitem__)
    return Choice(best, mx.array(candidates[best]), errors)


def choose_strength(
    readers: Sequence[Reader],
    activation_absmax: np.ndarray,
    grid: Grid,
    activation_bits: int | None = None,
    strengths: Sequence[float] = STRENGTHS,
    limit: float = 100.0,
) -> Choice[float]:
    """SmoothQuant's strength for one fold, measured (`balanced_error`).

    Args:
        activation_absmax: (channels,) largest |x| in calibration; the samples of `readers` may be
            few.
        strengths: candidates. Here 0 is no balancing at all (b = 1), where the formula would give
            1 / w.
        limit: see `balance_factors.normalized`.
    """
    weights = weight_absmax([reader.weight for reader in readers])
    candidates = {
        strength: smoothquant_factors(activation_absmax, weights, strength, limit)
        if strength > 0
        else np.ones(len(weights), dtype=np.float32)
        for strength in strengths
    }
    return choose_factors(readers, candidates, grid, activation_bits)


def choose_awq_strength(
    readers: Sequence[Reader],
    grid: Grid,
    activation_bits: int | None = None,
    strengths: Sequence[float] = AWQ_STRENGTHS,
    limit: float = 100.0,
) -> Choice[float]:
    """AWQ's alpha for one fold: b = mean|x|^alpha over the samples of all readers, measured."""
    distinct = list({id(reader.x): reader.x for reader in readers}.values())
    magnitude = mean_magnitude(mx.concatenate(distinct))
    candidates = {strength: awq_factors(magnitude, strength, limit) for strength in strengths}
    return choose_factors(readers, candidates, grid, activation_bits)


def shifted_error(
    reader: Reader, shift: mx.array, grid: Grid, activation_bits: int | None = None
) -> float:
    """|q_a(x - z) q_w(W)^T + z W^T - x W^T|^2 / |x W^T|^2, the error of fc2 with a shift z.

    Even at full-precision inputs z matters: the error of W meets x - z instead of x.

    Args:
        shift: z, (channels,).
        activation_bits: of q_a, one scale and the middle of the range for the whole sample.
    """
    x, weight = reader.x.astype(mx.float32), reader.weight.astype(mx.float32)
    inputs = quantized_input(x - shift, activation_bits, centered=True)
    output = inputs @ _rounded(weight, grid).T + shift @ weight.T
    return _relative_error(x @ weight.T, output).item()


def choose_shift(
    reader: Reader,
    candidates: Mapping[Key, np.ndarray],
    grid: Grid,
    activation_bits: int | None = None,
) -> Choice[Key]:
    """The shift z of fc2's inputs with the smallest `shifted_error`.

    Args:
        candidates: (channels,) each; give zeros first. The middle of each channel's range
            (`balance_factors.midrange`) makes the range of x - z smallest; the mean of x makes the
            inputs that errors of W meet smallest, which is bias correction (Nagel et al. 2019,
            arXiv 1906.04721).
    """
    errors = {
        key: shifted_error(reader, mx.array(shift), grid, activation_bits)
        for key, shift in candidates.items()
    }
    best = min(errors, key=errors.__getitem__)
    return Choice(best, mx.array(candidates[best]), errors)
