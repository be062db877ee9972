"""Grids and factors that know what the layer reads (AWQ, Lin et al. 2023, arXiv 2306.00978).

A weight error counts as much as the input it meets. Two searches use that, before any rounding:

* Clipping: the few largest weights of a group set its step. A smaller range makes all others finer
  and costs the large ones, which pays off where these meet small inputs.
* Scaling: multiplying the columns of W that meet large inputs by b = mean|x|^strength (and dividing
  the inputs, `balance`) makes their errors smaller.
"""

from __future__ import annotations

import numpy as np

from ..backend import mx, to_numpy
from .balance_factors import normalized
from .grids import Grid, Scales, fit_scales

# Ranges that are tried beside the whole one: down to a half.
SHRINK = tuple(round(1.0 - 0.05 * step, 2) for step in range(1, 11))


def clipped_scales(
    weight: mx.array, grid: Grid, second_moment: np.ndarray | mx.array, name: str = "The layer"
) -> Scales:
    """The grid over W whose ranges are clipped where that lowers the error of W x.

    For a group's rounding error e the error of the output is e^T H e with the group's block of
    H = sum x x^T (AWQ measures the same on a sample of outputs). Every group chooses by itself; for
    rounding to nearest.

    Args:
        weight: W (outputs, inputs).
        second_moment: H (inputs, inputs), or its diagonal (inputs,): errors of one group then do
            not make up for each other, which suits a rounding that sees to that itself (GPTQ).

    Raises:
        UserError: see `grids.fit_scales`.
    """
    importance = second_moment
    if isinstance(importance, np.ndarray):
        # Only ratios count, and float32 has not the range of a sum over many tokens squared.
        importance = mx.array(
            (importance / max(np.abs(importance).max(), 1e-30)).astype(np.float32)
        )
    return fit_scales(weight, grid, name, importance, SHRINK)


def awq_factors(mean_magnitude: np.ndarray, strength: float, limit: float = 100.0) -> np.ndarray:
    """b = mean|x|^strength for each channel, geometric mean 1, within [1 / limit, limit].

    Divides the inputs and multiplies the columns of W, which is AWQ's s.

    Args:
        mean_magnitude: mean|x| (channels,); 0 gives b = 1.
        strength: AWQ's alpha in 0..1; 0 is no scaling.

    Returns:
        (channels,) float32.
    """
    return normalized(np.asarray(mean_magnitude, dtype=np.float64) ** strength, limit)


def mean_magnitude(x: mx.array) -> np.ndarray:
    """mean|x| of each channel of (rows, channels) inputs, float32 (channels,)."""
    return to_numpy(mx.mean(mx.abs(x.astype(mx.float32)), axis=0))
