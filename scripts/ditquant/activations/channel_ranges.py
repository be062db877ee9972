"""Scales of groups of channels, and shifts of single ones: static outliers at no cost.

Few channels of an input are far larger than the others, or far from zero at all times, and the one
scale of a tensor follows them. Two remedies that need nothing at run time:

* A multiplier for each group of adjacent channels: group g is quantized with the scale m_g s,
  m_g <= 1. On a group grid the weights have a scale w_ng for each group of input channels already,

      y_n = sum_g (w_ng m_g) s sum_(c in g) q_nc a_c,

  so m_g goes into it and no code changes: outliers migrate into the weights without any rounding,
  where multipliers of single channels (TaQ-DiT, arXiv 2411.14172) are rounded with the weights.
  That needs groups as large as the weights' groups, or multiples of them.
* A shift of each channel, W x = W (x - z) + W z, with W z in the linear's bias. z is the average
  over images and steps of the channel's midrange (min + max) / 2. TaQ-DiT keeps a momentum of it
  over batches, z <- 0.95 z + 0.05 (min + max) / 2; corrected for its start, its expectation is this
  average, which depends on no order.

Inputs that have passed GELU keep their one shift: their channels end alike below zero, and what is
large in them are tokens, not channels.
"""

from __future__ import annotations

import numpy as np

from ..errors import UserError
from .input_statistics import InputStatistics, Statistics
from .intervals import SMALLEST_RANGE


def average_midrange(statistics: Statistics, name: str) -> np.ndarray:
    """z of each channel of a linear's input, (channels,) float32; see the module."""
    measured = statistics.of(name)
    sums = measured.sum_channel_min + measured.sum_channel_max
    return np.asarray(statistics.mean(sums).mean(axis=0) / 2).astype(np.float32)


def check_groups(statistics: Statistics, size: int | None) -> None:
    """Checks that groups of `size` channels fill every input.

    Raises:
        UserError: the width of an input is no multiple.
    """
    for name, measured in statistics.inputs.items():
        channels = measured.channel_max.shape[1]
        if size is not None and channels % size:
            raise UserError(
                f"activations.channel_group: {name} has {channels} channels, which groups of "
                f"{size} do not fill. Choose another size, or null."
            )


def channel_ranges(
    measured: InputStatistics, half: np.ndarray, z: np.ndarray, size: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """What shifts of channels and groups of them make of a tensor's ranges.

    Args:
        measured: statistics over R rows.
        half: (R,) half ranges around zero by any rule; what share of the largest |x| they keep is
            kept of |x - z| too.
        z: (channels,) shifts, or zeros.
        size: channels of a group; None: all.

    Returns:
        (R,) half ranges of the widest group and (R, groups) multipliers of the others, at most 1.
    """
    z = z.astype(np.float64)
    reach = np.maximum(np.abs(measured.channel_min - z), np.abs(measured.channel_max - z))
    share = half / np.maximum(measured.absmax.astype(np.float64), SMALLEST_RANGE)
    groups = reach.reshape(len(reach), -1, size or reach.shape[1]).max(axis=2) * share[:, None]
    groups = np.maximum(groups, SMALLEST_RANGE)
    widest = groups.max(axis=1)
    return widest, groups / widest[:, None]
