"""Tiers by sensitivity: 4, 6 or 8 bits where they lower the error most, under a budget of bits.

Four ways to say what an input's quantization to b bits costs at one sigma:

    latents    measured: what it makes of the final latents (`velocity_sensitivity`)
    velocity   measured: the same as it enters the latents, before later steps act on it
    output     predicted: x with W x behind it, quantized with an error of mean square e_b, disturbs
               the output by e_b ||W||_F^2 for each token, since the errors of single values are
               small, of mean zero and unrelated; e_b is what the histogram predicts
               (`intervals.predicted_error`); summed over tokens, steps and the linears that read x
    relative   the same divided by the output's own energy, about ||W||_F^2 mean(x^2), so that W
               cancels: the sum of noise-to-signal ratios of the inputs over linears and steps

The sum over all inputs and rows is made least under a budget of average bits (`budget`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..backend import mx
from ..network.blocks import Network
from .budget import allocate
from .channel_ranges import check_groups
from .input_statistics import Statistics
from .intervals import SMALLEST_RANGE, predicted_error
from .segments import grouped
from .single_tier import (
    DEFAULT_OPTIONS,
    ScaleOptions,
    header,
    row_ranges,
    rows_of_steps,
    scale_record,
)
from .summary import rounded
from .tiers import TIER_BITS, tier_entry, tier_summary

WEIGHTINGS = ("latents", "velocity", "output", "relative")
# Those that need forward passes of single inputs.
MEASURED_WEIGHTINGS = WEIGHTINGS[:2]


def input_gains(model: Network) -> dict[str, float]:
    """Linear name -> ||W||_F^2 / input channels: output error for each squared error of a value."""
    gains = {
        linear.name: mx.square(linear.module.weight.astype(mx.float32)).sum(axis=0).mean()
        for linear in model.linears
    }
    mx.eval(gains)
    return {name: float(gain) for name, gain in gains.items()}


def predicted_errors(
    statistics: Statistics,
    row_of: Sequence[int],
    rule: str,
    options: ScaleOptions,
    gains: Mapping[str, float] | None,
) -> dict[str, np.ndarray]:
    """Input name -> (rows, tiers) predicted error, over the steps of each row and all its linears.

    With `polynomial` and dynamic ranges, and with groups of channels, the errors are those of one
    scale for each measured sigma.

    Args:
        row_of: see `single_tier.rows_of_steps`.
        gains: of `input_gains`, for `output`; None: `relative`.
    """
    return {
        name: _predicted(statistics, name, row_of, rule, options, gains)
        for name in statistics.inputs
    }


def _predicted(
    statistics: Statistics,
    name: str,
    row_of: Sequence[int],
    rule: str,
    options: ScaleOptions,
    gains: Mapping[str, float] | None,
) -> np.ndarray:
    measured = grouped(statistics.inputs[name], row_of)
    per_value = np.stack(
        [
            predicted_error(
                measured, *row_ranges(statistics, name, row_of, rule, bits, options), bits
            )
            for bits in TIER_BITS
        ],
        axis=1,
    )
    readers = [linear for linear, read in statistics.input_of.items() if read == name]
    if gains is not None:
        return per_value * measured.count[:, None] * sum(gains[linear] for linear in readers)
    steps = np.bincount(row_of)
    mean_square = statistics.mean(measured.sum_mean_square) / steps
    relative = per_value / np.maximum(mean_square, SMALLEST_RANGE**2)[:, None]
    return np.asarray(relative * steps[:, None] * len(readers))


def sensitive_tiers(
    statistics: Statistics,
    granularity: str,
    rule: str,
    average_bits: float,
    weighting: str,
    errors: Mapping[str, np.ndarray],
    options: ScaleOptions = DEFAULT_OPTIONS,
) -> dict[str, Any]:
    """The document `ditquant.quant_config` with tiers by sensitivity under a budget.

    The average weighs an input by its values in all linears and steps that read it, as
    `average_bits` of the summary does.

    Args:
        granularity, rule: see `single_tier`.
        average_bits: 4 to 8; the configuration's average is at most this.
        weighting: one of WEIGHTINGS, for the record.
        errors: input name -> (rows, tiers), of `predicted_errors` or
            `velocity_sensitivity.latent_errors`.
    """
    check_groups(statistics, options.channel_group)
    row_of = rows_of_steps(statistics, granularity, rule, TIER_BITS[-1], options)
    rows = max(row_of) + 1
    names = list(statistics.inputs)
    readers = list(statistics.input_of.values())
    sizes = np.concatenate(
        [grouped(statistics.inputs[name], row_of).count * readers.count(name) for name in names]
    )
    stacked = np.concatenate([errors[name] for name in names])
    chosen = allocate(stacked, sizes, TIER_BITS, average_bits)
    bits_of = {
        name: np.array(TIER_BITS)[chosen[start : start + rows]]
        for name, start in zip(names, range(0, len(chosen), rows), strict=True)
    }
    layers = {}
    for linear, name in statistics.input_of.items():
        layers[linear] = tier_entry(
            statistics, linear, granularity, rule, options, row_of, bits_of[name]
        )
        layers[linear]["predicted_error"] = {
            f"A{bits}": rounded(column)
            for bits, column in zip(TIER_BITS, errors[name].T, strict=True)
        }
    return {
        **header(statistics, granularity, row_of),
        "configuration": {
            "tiers": {
                "mode": "sensitivity",
                "average_bits": average_bits,
                "weighting": weighting,
            },
            **scale_record(granularity, rule, options),
        },
        "summary": {
            **tier_summary(statistics, layers, row_of),
            **_schedule(layers, row_of),
            "predicted_error": {
                "chosen": rounded(stacked[np.arange(len(chosen)), chosen].sum())[0],
                **{
                    f"A{bits}": rounded(total)[0]
                    for bits, total in zip(TIER_BITS, stacked.sum(axis=0), strict=True)
                },
            },
        },
        "layers": layers,
    }


def _schedule(layers: Mapping[str, Mapping[str, Any]], row_of: list[int]) -> dict[str, Any]:
    """How the tiers of the layers that switch move over the schedule.

    Returns:
        "switches": layer -> changes of tier from one measured sigma to the next; "variability":
        layer -> standard deviation over mean of its bits.
    """
    bits = {name: np.array(entry["bits"])[row_of] for name, entry in layers.items()}
    switching = {name: row for name, row in bits.items() if row.min() < row.max()}
    return {
        "switches": {name: int((np.diff(row) != 0).sum()) for name, row in switching.items()},
        "variability": {
            name: rounded(row.std() / row.mean())[0] for name, row in switching.items()
        },
    }
