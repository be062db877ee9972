"""Connected regions of a binary picture, with numpy alone."""

from __future__ import annotations

import numpy as np


def _runs(row: np.ndarray) -> list[tuple[int, int]]:
    """Half-open intervals of the True pixels of a row."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], row, [False])).astype(np.int8)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def connected_regions(mask: np.ndarray) -> list[np.ndarray]:
    """The regions of True pixels that hang together, corners included, in reading order.

    Runs of neighbouring rows that touch are joined in a forest of sets (Rosenfeld & Pfaltz 1966).

    Args:
        mask: bool (height, width).

    Returns:
        One bool (height, width) mask a region.
    """
    parents: list[int] = []

    def root(label: int) -> int:
        while parents[label] != label:
            parents[label] = parents[parents[label]]
            label = parents[label]
        return label

    labelled: list[tuple[int, int, int, int]] = []  # row, first column, end column, label
    above: list[tuple[int, int, int]] = []
    for y, row in enumerate(mask):
        here = []
        for first, end in _runs(row):
            label = len(parents)
            parents.append(label)
            for other_first, other_end, other in above:
                if first <= other_end and other_first <= end:
                    parents[root(label)] = root(other)
            here.append((first, end, label))
            labelled.append((y, first, end, label))
        above = here
    regions: dict[int, np.ndarray] = {}
    for y, first, end, label in labelled:
        region = regions.setdefault(root(label), np.zeros(mask.shape, dtype=bool))
        region[y, first:end] = True
    return list(regions.values())


def eroded(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask all of whose eight neighbours belong to it too."""
    padded = np.pad(mask, 1)
    height, width = mask.shape
    shifts = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return np.logical_and.reduce(shifts)


def dilated(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask and their eight neighbours."""
    return ~eroded(np.pad(~mask, 1, constant_values=True))[1:-1, 1:-1]
