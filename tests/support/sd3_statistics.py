"""Activation statistics of the shape of SD3-medium's, with the published traits, without a model.

The 285 block linears (189 inputs) of 24 blocks in two streams; the last text block ends behind
attention. Ranges grow with depth and drift over the schedule, those of fc2 are skewed by GELU and
have 2 % of the channels many times larger.
"""

from __future__ import annotations

import numpy as np

from ditquant.activations.histogram import bin_edges
from ditquant.activations.input_statistics import (
    InputStatistics,
    Statistics,
    of_one_image,
    to_fixed,
)

BLOCKS = 24
_PLACES = ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.o_proj", "mlp.fc1", "mlp.fc2")
_VALUES = 3000


def sd3_linears(blocks: int = BLOCKS) -> dict[str, str]:
    """Linear name -> name of its input, as in `Statistics.input_of`."""
    input_of = {}
    for block in range(blocks):
        for stream in ("img", "txt"):
            is_last = stream == "txt" and block == blocks - 1
            for place in _PLACES[:3] if is_last else _PLACES:
                name = f"mm{block:02d}.{stream}.{place}"
                first = f"mm{block:02d}.{stream}.attn.q_proj"
                input_of[name] = first if place in _PLACES[1:3] else name
    return input_of


def _input(
    random: np.random.Generator, channels: int, size: np.ndarray, gelu: bool
) -> InputStatistics:
    """One input: `size` (S,) is the spread of a usual channel at each step."""
    spread = np.exp(0.35 * random.standard_normal(channels))
    if gelu:
        outliers = random.choice(channels, max(1, channels // 50), replace=False)
        spread[outliers] *= random.uniform(3, 9, len(outliers))
    histogram, low, high = [], [], []
    edges = bin_edges()
    for scale in size:
        of = random.integers(0, channels, _VALUES)
        values = scale * spread[of] * random.standard_normal(_VALUES)
        reach = scale * spread * random.uniform(3.2, 4.2, (2, channels))
        least = -reach[0]
        if gelu:
            values = np.where(values > 0, values, -0.17 * random.random(_VALUES) ** 3)
            least = -0.17 * random.uniform(0.8, 0.999, channels)
        values = np.append(np.clip(values, least[of], reach[1][of]), [least.min(), reach[1].max()])
        places = np.clip(np.searchsorted(edges, np.abs(values), side="right") - 1, 1, None)
        counts = np.bincount(np.minimum(places, len(edges) - 2), minlength=len(edges) - 1)
        histogram.append(counts.astype(np.int64))
        low.append(least)
        high.append(reach[1])
    channel_min, channel_max = np.float32(low), np.float32(high)
    return of_one_image(
        channel_min=channel_min,
        channel_max=channel_max,
        sum_mean_square=to_fixed(size**2),
        histogram=np.array(histogram),
        token_histogram=np.array(histogram),
    )


def sd3_statistics(
    steps: int = 25, channels: int = 1536, blocks: int = BLOCKS, shift: float = 3.0
) -> Statistics:
    """Statistics of `steps` of 50 steps, `channels` wide (four times as wide before fc2)."""
    random = np.random.default_rng(0)
    t = np.linspace(1, 1 / steps, steps)
    sigmas = shift * t / (1 + (shift - 1) * t)
    input_of = sd3_linears(blocks)
    inputs = {}
    for name in dict.fromkeys(input_of.values()):
        depth = int(name[2:4]) / blocks
        gelu = name.endswith("fc2")
        drift = 1 + random.uniform(-0.6, 1.6) * (1 - sigmas) + random.uniform(0, 0.5) * sigmas**8
        size = random.uniform(0.5, 1.6) * (1 + 2 * depth**3) * drift
        if name.startswith(f"mm{blocks - 2:02d}.txt.mlp"):
            size = size * 6
        inputs[name] = _input(random, channels * (4 if gelu else 1), size, gelu)
    return Statistics(
        model="sd3-medium",
        images=("0000",),
        steps=tuple(range(0, 2 * steps, 2)),
        sigmas=sigmas.astype(np.float32),
        input_of=input_of,
        post_gelu=frozenset(name for name in input_of if name.endswith("fc2")),
        inputs=inputs,
    )
