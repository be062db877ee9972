"""Signed distributions of a linear's input, from its histogram of |x| and its extremes.

The histogram has no signs. Where values of one sign reach further than the others, the sign is
certain; elsewhere half are taken to be positive, and behind GELU what `intervals` estimates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..activations.granularity import GRANULARITIES
from ..activations.histogram import bin_edges
from ..activations.input_statistics import InputStatistics
from ..activations.intervals import positive_share
from ..activations.quant_params import QuantParams, code_range

# Rules whose name alone says too little.
_RULES = {"measured": "measured error", "mse": "predicted error"}


@dataclass(frozen=True)
class Distribution:
    """The shares of an input's values below any point, at one measured step.

    Attributes:
        points: (K,) ascending.
        below: (K,) share of values below each point, from 0 to 1; linear in between.
    """

    points: np.ndarray
    below: np.ndarray

    def between(self, edges: np.ndarray) -> np.ndarray:
        """(E - 1,) share of values between neighbours of `edges`, (E,) ascending."""
        return np.diff(np.interp(edges, self.points, self.below))


def distribution(measured: InputStatistics, step: int) -> Distribution:
    """The distribution at position `step`, evenly spread within a bin."""
    counts = measured.histogram[step].astype(np.float64)
    low, high = float(measured.minimum[step]), float(measured.maximum[step])
    share = positive_share(counts, low, high)
    positive = counts * np.where(bin_edges()[:-1] > max(high, 0.0), 0.0, share)
    positive[1] += positive[0]
    negative = counts - positive
    # Bin 0, exact zeros, joins the smallest values; no bin reaches beyond the extremes.
    negative[1] = counts[0] + counts[1] - positive[1]
    upper = np.minimum(bin_edges()[2:], max(high, 0.0))
    lower = np.maximum(-bin_edges()[2:], min(low, 0.0))
    shares = np.concatenate([negative[:0:-1], positive[1:]])
    points = np.concatenate([lower[::-1], [0.0], upper])
    below = np.concatenate([[0.0], np.cumsum(shares)]) / max(counts.sum(), 1.0)
    return Distribution(points, below)


@dataclass(frozen=True)
class Codes:
    """The codes of an input at one sigma.

    Attributes:
        low, high: the smallest and the largest code.
        scale, shift: code q stands for scale q + shift.
    """

    low: int
    high: int
    scale: float
    shift: float

    @property
    def interval(self) -> tuple[float, float]:
        """The smallest and the largest value that a code stands for."""
        return self.scale * self.low + self.shift, self.scale * self.high + self.shift

    def levels(self) -> np.ndarray:
        """The value of every code."""
        return self.scale * np.arange(self.low, self.high + 1) + self.shift

    def shares(self, values: Distribution) -> np.ndarray:
        """The share of values that is rounded to each code; what is clipped is not among them."""
        edges = self.scale * (np.arange(self.low, self.high + 2) - 0.5) + self.shift
        return values.between(edges)


def codes_of(params: QuantParams, measured: InputStatistics, step: int) -> Codes:
    """The codes of a configuration; of dynamic ranges those that the measured extremes give.

    Where groups of channels have scales of their own these are the codes of the widest group, and
    where each channel has a shift of its own they are around zero.
    """
    low, high = code_range(params.bits, params.unsigned)
    shift = 0.0 if np.size(params.shift) > 1 else float(np.asarray(params.shift).item())
    if params.scale is None:
        away = np.array([measured.minimum[step], measured.maximum[step]]) - shift
        scale = float(np.abs(away).max()) / high
    else:
        scale = float(np.max(params.scale))
    return Codes(low, high, max(scale, 1e-12), shift)


def made_by(document: Mapping[str, Any]) -> str:
    """How a configuration's ranges are made, for a title."""
    made = document["configuration"]
    granularity = GRANULARITIES[made["granularity"]]
    group, rule = made.get("channel_group"), made["range"]
    words = granularity.label + (f" and group of {group} channels" if group else "")
    if granularity.ranges_over is not None:
        return words
    return f"{words}, range by {_RULES.get(rule, rule)}"


def entropy(shares: np.ndarray) -> float:
    """Bits that the codes of these shares carry."""
    shares = shares[shares > 0] / shares.sum()
    return float(-(shares * np.log2(shares)).sum())
