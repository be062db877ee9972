"""A4, A6 and A8 side by side: a tier for each layer and sigma, by the threshold rule.

The classic rule gives a layer four bits where its range is small, six where it is larger and eight
above: what a range costs at a number of bits grows with the range. `sensitivity` chooses by
predicted error under a budget instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .input_statistics import Statistics
from .single_tier import (
    DEFAULT_OPTIONS,
    ScaleOptions,
    header,
    layer_entry,
    row_ranges,
    rows_of_steps,
    scale_record,
    shift_report,
)
from .summary import rounded

# The tiers of a multi-tier configuration, by rising range.
TIER_BITS = (4, 6, 8)


def tier_of(half: np.ndarray, limits: Sequence[float]) -> np.ndarray:
    """(S,) bits: 4 up to limits[0], 6 up to limits[1], 8 above; `half` is (S,) half ranges."""
    return np.array(TIER_BITS)[np.searchsorted(np.asarray(limits), half)]


def tier_entry(
    statistics: Statistics,
    name: str,
    granularity: str,
    rule: str,
    options: ScaleOptions,
    row_of: Sequence[int],
    bits: np.ndarray,
) -> dict[str, Any]:
    """One layer of a multi-tier configuration, with the ranges that suit each row's bits.

    Args:
        row_of: row of each measured step, see `single_tier.rows_of_steps`.
        bits: (R,) of TIER_BITS.
    """
    by_bits = {
        int(b): row_ranges(statistics, name, row_of, rule, int(b), options) for b in np.unique(bits)
    }
    half, shift = (
        np.array([by_bits[int(b)][part][row] for row, b in enumerate(bits)]) for part in (0, 1)
    )
    entry = layer_entry(statistics, name, granularity, options, row_of, bits, half, shift)
    return entry | shift_report(statistics, name, granularity, options, row_of, rule, bits)


def multi_tier(
    statistics: Statistics,
    granularity: str,
    rule: str,
    tiers: Mapping[str, Sequence[float]],
    options: ScaleOptions = DEFAULT_OPTIONS,
) -> dict[str, Any]:
    """The document `ditquant.quant_config` with a tier for each layer and row.

    Args:
        granularity, rule: see `single_tier`; the range that chooses a tier, and that finds the
            groups, is the one at 8 bits. Where scales are not listed, rows are measured sigmas.
        tiers: "linear" and "post_gelu" -> (upper limit of A4, upper limit of A6).
    """
    row_of = rows_of_steps(statistics, granularity, rule, TIER_BITS[-1], options)
    layers = {}
    for name in statistics.input_of:
        half, _ = row_ranges(statistics, name, row_of, rule, TIER_BITS[-1], options)
        bits = tier_of(half, tiers["post_gelu" if name in statistics.post_gelu else "linear"])
        layers[name] = tier_entry(statistics, name, granularity, rule, options, row_of, bits)
    return {
        **header(statistics, granularity, row_of),
        "configuration": {
            "tiers": {kind: list(limits) for kind, limits in tiers.items()},
            **scale_record(granularity, rule, options),
        },
        "summary": tier_summary(statistics, layers, row_of),
        "layers": layers,
    }


def tier_summary(
    statistics: Statistics, layers: Mapping[str, Mapping[str, Any]], row_of: Sequence[int]
) -> dict[str, Any]:
    """Share of each tier over (layer, sigma), average bits, and which layers do what.

    `average_bits` weighs a layer by the values in its input, so that it is proportional to memory.
    """
    bits = np.array([np.array(entry["bits"])[list(row_of)] for entry in layers.values()])
    values = np.array([statistics.of(name).count for name in layers])
    names = np.array(list(layers))
    tiers = {f"A{b}": bits == b for b in TIER_BITS}
    return {
        "shares": {tier: rounded(chosen.mean())[0] for tier, chosen in tiers.items()},
        "average_bits": rounded(np.average(bits, weights=values))[0],
        "layers_per_sigma": {
            tier: [int(count) for count in chosen.sum(axis=0)] for tier, chosen in tiers.items()
        },
        "switching_layers": names[bits.min(axis=1) < bits.max(axis=1)].tolist(),
        "always_a8_layers": names[bits.min(axis=1) == TIER_BITS[-1]].tolist(),
    }
