"""Bits under a budget: each unit gets the bits where they save the most error.

minimise sum_u errors[u, k_u] subject to sum_u sizes[u] bits[k_u] <= average sum_u sizes[u]

Of each unit only the options on the lower convex hull of error over bits can be best for some price
of a bit (the Lagrange multiplier), and along a hull the error saved per bit only falls. So taking
the steps of all hulls in order of their saving per bit is optimal if the budget is used up exactly
(Shoham and Gersho 1988, "Efficient bit allocation for an arbitrary set of quantizers"). Otherwise
it misses the optimum by less than the first step that no longer fits. Exchanges between two units
reduce this difference.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Of the budget, for sums of floats that should be equal to it.
_SLACK = 1e-9
# Passes of exchanges; two or three find nothing more.
_PASSES = 8


def _hull_steps(errors: np.ndarray, bits: Sequence[int]) -> list[tuple[float, int, int]]:
    """(error saved per bit, option before, option after) along one unit's lower convex hull."""
    steps: list[tuple[float, int, int]] = []
    at = 0
    while True:
        slopes = [
            ((errors[at] - errors[k]) / (bits[k] - bits[at]), k) for k in range(at + 1, len(bits))
        ]
        # Of equal slopes the fewest bits: the others follow as steps of their own.
        saving, after = max(slopes, key=lambda slope: (slope[0], -slope[1]), default=(0.0, at))
        if saving <= 0:
            return steps
        steps.append((saving, at, after))
        at = after


def _improve(chosen: np.ndarray, errors: np.ndarray, costs: np.ndarray, left: float) -> bool:
    """One pass of single changes that the budget has room for, or that one other unit makes room.

    For each unit and option that lowers its error, the largest saving first: the change is made if
    it fits, or if another unit can give the bits and loses less by it. In place.

    Returns:
        Whether anything was changed.
    """
    units = np.arange(len(chosen))
    saved = errors[units, chosen][:, None] - errors
    order = np.argsort(-saved, axis=None, kind="stable")
    changed = False
    for unit, option in zip(*np.unravel_index(order, saved.shape), strict=True):
        if saved[unit, option] <= 0:
            break
        gain = errors[unit, chosen[unit]] - errors[unit, option]
        missing = costs[unit, option] - costs[unit, chosen[unit]] - left
        if gain <= 0:
            continue
        if missing > 0:
            freed = costs[units, chosen][:, None] - costs
            lost = np.where(freed >= missing, errors - errors[units, chosen][:, None], np.inf)
            lost[unit] = np.inf
            giver, lower = np.unravel_index(lost.argmin(), lost.shape)
            # Below a part in 10^12 rounding could go back and forth.
            if lost[giver, lower] >= gain * (1 - 1e-12):
                continue
            left += freed[giver, lower]
            chosen[giver] = lower
        left -= costs[unit, option] - costs[unit, chosen[unit]]
        chosen[unit] = option
        changed = True
    return changed


def allocate(
    errors: np.ndarray, sizes: np.ndarray, bits: Sequence[int], average: float
) -> np.ndarray:
    """The option of each unit; see the module. The same arguments give the same result.

    Args:
        errors: (U, K) error of each unit with each option.
        sizes: (U,) positive weights of the average, at least 1.
        bits: K rising numbers of bits.
        average: what sum(sizes * bits) / sum(sizes) may be at most.

    Returns:
        (U,) indices into `bits`.

    Raises:
        ValueError: the average is below the fewest bits.
    """
    if average < bits[0]:
        raise ValueError(f"an average of {average} bits is below the fewest, {bits[0]}")
    costs = np.asarray(sizes, dtype=np.float64)[:, None] * np.asarray(bits)
    budget = average * float(np.sum(sizes)) * (1 + _SLACK)
    left = budget - costs[:, 0].sum()
    steps = [
        (saving / float(sizes[unit]), unit, before, after)
        for unit, row in enumerate(errors)
        for saving, before, after in _hull_steps(row, bits)
    ]
    chosen = np.zeros(len(errors), dtype=int)
    # Falling savings; units in order where they are equal, and a unit's own steps in order.
    for _, unit, before, after in sorted(steps, key=lambda step: (-step[0], step[1], step[2])):
        cost = costs[unit, after] - costs[unit, before]
        if chosen[unit] == before and cost <= left:
            chosen[unit] = after
            left -= cost
    for _ in range(_PASSES):
        left = budget - costs[np.arange(len(chosen)), chosen].sum()
        if not _improve(chosen, np.asarray(errors, dtype=np.float64), costs, left):
            break
    return chosen
