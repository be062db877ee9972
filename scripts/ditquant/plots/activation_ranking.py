"""Which steps and which layers the activation plots show, where not all of them have room."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ..activations.input_statistics import InputStatistics, Statistics

# A channel counts as an outlier above this multiple of its layer's median channel.
OUTLIER = 4.0
_TINY = 1e-12


def nearest_steps(steps: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """Positions in `steps` of the measured steps nearest to the wanted ones, each once."""
    measured = np.asarray(steps)
    return sorted({int(np.abs(measured - step).argmin()) for step in wanted})


def drift(measured: InputStatistics) -> float:
    """The largest range over the schedule, as a multiple of the smallest."""
    return float(measured.absmax.max() / max(measured.absmax.min(), _TINY))


def variation(measured: InputStatistics) -> float:
    """Coefficient of variation of the range over the schedule: deviation over mean."""
    absmax = measured.absmax.astype(np.float64)
    return float(absmax.std() / max(absmax.mean(), _TINY))


def channel_absmax(measured: InputStatistics) -> np.ndarray:
    """(S, channels) the largest |x| of every channel at every measured step."""
    return np.maximum(np.abs(measured.channel_min), np.abs(measured.channel_max))


def outlier_ratio(measured: InputStatistics) -> float:
    """The largest channel of all steps, as a multiple of the median channel."""
    largest = channel_absmax(measured).max(axis=0)
    return float(largest.max() / max(float(np.median(largest)), _TINY))


def _largest(values: Mapping[str, float], count: int) -> list[str]:
    return sorted(values, key=lambda name: (-values[name], name))[:count]


def most_variable(
    statistics: Statistics, count: int, among: Iterable[str] | None = None
) -> list[str]:
    """The inputs whose range drifts most, the one that drifts most first."""
    names = statistics.inputs if among is None else among
    return _largest({name: drift(statistics.inputs[name]) for name in names}, count)


def most_outlying(statistics: Statistics, count: int) -> list[str]:
    """The inputs with the largest outlier channels, the largest first."""
    return _largest({name: outlier_ratio(s) for name, s in statistics.inputs.items()}, count)


def variable_of_both_kinds(statistics: Statistics, count: int) -> list[str]:
    """The most variable inputs, half of them after GELU, in the model's order."""
    after = [name for name in statistics.inputs if name in statistics.post_gelu]
    others = [name for name in statistics.inputs if name not in statistics.post_gelu]
    shifted = most_variable(statistics, max(count // 2, count - len(others)), after)
    chosen = {*shifted, *most_variable(statistics, count - len(shifted), others)}
    return [name for name in statistics.inputs if name in chosen]
