"""Sigma groups: adjacent steps that share a scale, chosen so that few codes are wasted.

A group's scale must cover its largest range, so a step whose own range is smaller loses
log2(largest / own) bits there. Over all inputs and steps that loss is least for one way to cut the
schedule into a given number of runs of adjacent steps, and dynamic programming finds it (Fisher
1958, "On grouping for maximum homogeneity", with this loss instead of the variance).

The cuts are the same for all layers: scales then change together, a few times in a schedule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np

from .input_statistics import InputStatistics


def _segment_losses(log_ranges: np.ndarray) -> np.ndarray:
    """(S, S): [i, j] is the loss of one group of steps i to j, both included; infinite for j < i.

    Args:
        log_ranges: (inputs, S) logarithms of ranges, base 2.
    """
    steps = log_ranges.shape[1]
    losses = np.full((steps, steps), np.inf)
    for first in range(steps):
        largest = np.maximum.accumulate(log_ranges[:, first:], axis=1)
        total = np.cumsum(log_ranges[:, first:], axis=1)
        lengths = np.arange(1, steps - first + 1)
        losses[first, first:] = (largest * lengths - total).sum(axis=0)
    return losses


def segment(log_ranges: np.ndarray, groups: int) -> list[int]:
    """The group of each step, 0 to groups - 1, with the least loss of bits; see the module.

    Args:
        log_ranges: (inputs, S) logarithms of ranges, base 2, S steps in order.
        groups: how many runs of adjacent steps; at most S are made.

    Returns:
        S numbers that start at 0 and rise by 0 or 1. Of equal partitions the one whose last groups
        start earliest.
    """
    losses = _segment_losses(np.asarray(log_ranges, dtype=np.float64))
    steps = len(losses)
    groups = min(groups, steps)
    # best[j] is the least loss of steps 0 to j with the groups so far; starts[g][j] where the
    # last of them begins.
    best = losses[0]
    starts: list[np.ndarray] = []
    for _ in range(1, groups):
        # [i, j]: the last group is i to j, the others share 0 to i - 1.
        totals = losses + np.concatenate([[np.inf], best[:-1]])[:, None]
        starts.append(totals.argmin(axis=0))
        best = totals.min(axis=0)
    group_of = np.zeros(steps, dtype=int)
    end = steps - 1
    for number in range(groups - 1, 0, -1):
        start = int(starts[number - 1][end])
        group_of[start : end + 1] = number
        end = start - 1
    return [int(group) for group in group_of]


def summed_by_row(
    sigmas: np.ndarray,
    row_of: Sequence[int],
    measured: np.ndarray,
    values: np.ndarray,
    weights: np.ndarray | float = 1.0,
) -> np.ndarray:
    """Sums over the steps of each row, of values that were measured at some other sigmas.

    Args:
        sigmas: (S,) of the steps.
        row_of: the row of each step.
        measured: (M,) sigmas of the values; a step takes those of the nearest.
        values: (M, ...).
        weights: (S,) of the steps.

    Returns:
        (rows, ...) float64.
    """
    nearest = np.abs(np.asarray(sigmas, np.float64)[:, None] - measured).argmin(axis=1)
    rows = np.asarray(row_of)
    summed = np.zeros((rows.max() + 1, *values.shape[1:]))
    of_steps = np.broadcast_to(weights, len(rows)).reshape(-1, *(1,) * (values.ndim - 1))
    np.add.at(summed, rows, of_steps * values[nearest])
    return summed


def grouped(measured: InputStatistics, group_of: Sequence[int]) -> InputStatistics:
    """Statistics with one row a group: the steps of each group pooled.

    Args:
        group_of: the group of each step, as `segment` returns it.
    """
    groups = np.asarray(group_of)
    names = [field.name for field in fields(InputStatistics)]
    parts = []
    for number in range(groups.max() + 1):
        chosen = {name: getattr(measured, name)[groups == number] for name in names}
        parts.append(InputStatistics(**chosen).pooled())
    return InputStatistics(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    )
