"""From activation statistics to scales, with one number of bits for all layers (W4A8).

Ranges drift over the schedule, so scales follow sigma (TaQ-DiT's "time-aware", arXiv 2411.14172):
one for each measured sigma, one for each group of adjacent ones, or a polynomial; or they are made
at run time from the values. Inference looks up by sigma, since it may use other steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..finite import check_finite
from .channel_ranges import average_midrange, channel_ranges, check_groups
from .input_statistics import Statistics
from .intervals import GELU_LOW, largest_code, range_and_shift, shift_errors
from .learned_ranges import Intervals, scaled_to_rows
from .polynomials import evaluate, least_squares, upper_fit, variable_of
from .segments import grouped, segment
from .summary import measurement_of, rounded

CONFIG_FORMAT = "ditquant.quant_config"
# The range is computed at run time, of a picture's whole tensor or of each token.
DYNAMIC = ("dynamic-tensor", "dynamic-token")
GRANULARITIES = ("static", "step", "group", "polynomial", *DYNAMIC)


@dataclass(frozen=True)
class ScaleOptions:
    """What some granularities ask for: keys below `activations`.

    Attributes:
        groups: sigma groups of granularity `group`; fewer where fewer steps were measured.
        degree, variable: of granularity `polynomial`, see `polynomials`.
        shift: of post-GELU inputs, see `intervals`; dynamic ranges are unsigned whatever it says.
        channel_group: adjacent channels that share a scale, see `channel_ranges`; None: all do.
        channel_shift: whether channels of ordinary inputs have shifts of their own, likewise.
        learned: of the rule `learned`, for listed scales of whole tensors: the intervals of the
            inputs that have one, see `learned_ranges`.
        shares: of the rule `measured`: bits -> input name -> (R,) the share of the largest value at
            which each row's range ends, see `clip_errors`; of inputs that have none all of it.
    """

    groups: int = 5
    degree: int = 3
    variable: str = "sigma"
    shift: str = "middle"
    channel_group: int | None = None
    channel_shift: bool = False
    learned: Intervals = field(default_factory=dict)
    shares: Mapping[int, Mapping[str, np.ndarray]] = field(default_factory=dict)

    def share(self, name: str, bits: int) -> np.ndarray | float:
        """(R,) of an input, or 1."""
        return self.shares.get(bits, {}).get(name, 1.0)


DEFAULT_OPTIONS = ScaleOptions()


def float32_list(values: np.ndarray) -> list[float]:
    """Values that are exact in float32, written as short as they can be read back."""
    return [float(f"{value:.9g}") for value in np.asarray(values, dtype=np.float32)]


def rows_of_steps(
    statistics: Statistics, granularity: str, rule: str, bits: int, options: ScaleOptions
) -> list[int]:
    """The row of each measured step: all 0 for `static`, the group for `group`, else its own."""
    steps = len(statistics.sigmas)
    if granularity == "static":
        return [0] * steps
    if granularity != "group":
        return list(range(steps))
    own = range(steps)
    # Shares belong to the rows that are to be found.
    unclipped = replace(options, shares={})
    halves = [
        row_ranges(statistics, name, own, rule, bits, unclipped)[0] for name in statistics.inputs
    ]
    return segment(np.log2(halves), options.groups)


def row_ranges(
    statistics: Statistics,
    name: str,
    row_of: Sequence[int],
    rule: str,
    bits: int,
    options: ScaleOptions,
) -> tuple[np.ndarray, np.ndarray]:
    """(R,) half ranges and (R,) shifts of a linear's input, learned ones or by the rule.

    Args:
        row_of: row of each measured step, see `rows_of_steps`.
        rule, bits: see `intervals.range_and_shift`.
    """
    measured = grouped(statistics.of(name), row_of)
    interval = options.learned.get(statistics.input_of[name])
    if interval is not None:
        return scaled_to_rows(measured, interval, bits)
    share = options.share(statistics.input_of[name], bits)
    return range_and_shift(measured, name in statistics.post_gelu, rule, bits, options.shift, share)


def layer_entry(
    statistics: Statistics,
    name: str,
    granularity: str,
    options: ScaleOptions,
    row_of: Sequence[int],
    bits: np.ndarray,
    half: np.ndarray,
    shift: np.ndarray,
) -> dict[str, Any]:
    """One layer of a configuration, as `quant_config` describes it.

    Args:
        row_of: row of each measured step, see `rows_of_steps`.
        bits: (R,) of each row, or (1,) for all; R where scales are listed.
        half, shift: (R,) half ranges and shifts, see `row_ranges`.

    Raises:
        UserError: a range or a shift is NaN or infinite.
    """
    check_finite({"the ranges": half, "the shifts": shift}, f"of the inputs of {name}")
    measured = statistics.of(name)
    is_learned = statistics.input_of[name] in options.learned
    is_shifted = is_learned or name in statistics.post_gelu
    entry: dict[str, Any] = {
        "input": statistics.input_of[name],
        "channels": int(measured.channel_max.shape[1]),
        "bits": [int(b) for b in bits],
    }
    if not is_shifted:
        z = np.zeros(entry["channels"], np.float32)
        if options.channel_shift:
            z = average_midrange(statistics, name)
            entry["channel_shift"] = float32_list(z)
        if granularity not in DYNAMIC:
            rows = grouped(measured, row_of)
            half, factors = channel_ranges(rows, half, z, options.channel_group)
            # A polynomial has one set of factors: what is needed at any step.
            factors = factors.max(axis=0, keepdims=True) if granularity == "polynomial" else factors
            if options.channel_group is not None:
                entry["multipliers"] = [float32_list(row) for row in factors]
    if granularity == "polynomial":
        x = variable_of(statistics.sigmas, options.variable)
        if is_shifted:
            fitted = least_squares(x, shift, options.degree)
            entry["shift_polynomial"] = fitted
            # Around a shift that is a little off, the same interval needs a wider range.
            half = half + np.abs(evaluate(fitted, x) - shift)
        entry["log_range"] = upper_fit(x, np.log(half), options.degree)
    elif granularity in DYNAMIC:
        # The middle of a range needs the range; the lowest value is known before.
        shift = np.minimum(GELU_LOW, measured.minimum.min(keepdims=True))
    else:
        codes = np.array([largest_code(int(b)) for b in bits])
        entry["scales"] = float32_list(half / codes)
    entry["input_amax"] = float32_list(measured.absmax.max(keepdims=True))[0]
    if is_shifted and granularity != "polynomial":
        entry["shifts"] = float32_list(shift)
    if is_shifted and granularity in DYNAMIC:
        entry["unsigned"] = True
    if is_learned:
        entry["learned"] = True
    return entry


def shift_report(
    statistics: Statistics,
    name: str,
    granularity: str,
    options: ScaleOptions,
    row_of: Sequence[int],
    rule: str,
    bits: np.ndarray,
) -> dict[str, Any]:
    """Which shift `error` took in each row, and what it chose by.

    Args:
        row_of: row of each measured step, see `rows_of_steps`.
        bits: (R,).

    Returns:
        "shift_rules": R names; "shift_errors": name -> R predicted mean squared errors. Nothing
        where no such choice was made.
    """
    chooses = name in statistics.post_gelu and options.shift == "error"
    if not chooses or granularity in DYNAMIC or statistics.input_of[name] in options.learned:
        return {}
    measured = grouped(statistics.of(name), row_of)
    by_bits = {
        b: shift_errors(measured, rule, int(b), options.share(statistics.input_of[name], int(b)))
        for b in np.unique(bits)
    }
    names = list(next(iter(by_bits.values())))
    errors = np.array([[by_bits[b][name][row] for row, b in enumerate(bits)] for name in names])
    return {
        "shift_rules": [names[best] for best in errors.argmin(axis=0)],
        "shift_errors": {name: rounded(row) for name, row in zip(names, errors, strict=True)},
    }


def header(statistics: Statistics, granularity: str, row_of: list[int]) -> dict[str, Any]:
    """The start of a configuration: what was measured, and the group of each measured sigma."""
    groups = {"groups": row_of} if granularity == "group" else {}
    return {**measurement_of(statistics), **groups}


def scale_record(granularity: str, rule: str, options: ScaleOptions) -> dict[str, Any]:
    """What the configuration says of how its scales were made; only options that were used."""
    used: dict[str, Any] = {"granularity": granularity, "range": rule}
    if granularity == "group":
        used["groups"] = options.groups
    if granularity == "polynomial":
        used |= {"degree": options.degree, "variable": options.variable}
    if options.shift != "middle" and granularity not in DYNAMIC:
        used["shift"] = options.shift
    if options.channel_group is not None:
        used["channel_group"] = options.channel_group
    if options.channel_shift:
        used["channel_shift"] = True
    return used


def single_tier(
    statistics: Statistics,
    bits: int,
    granularity: str,
    rule: str,
    options: ScaleOptions = DEFAULT_OPTIONS,
) -> dict[str, Any]:
    """The document `ditquant.quant_config` with one number of bits for every layer.

    Args:
        granularity: one of GRANULARITIES.
        rule: where ranges end, see `clip_limits` and, for `learned`, `learned_ranges`; dynamic
            ranges take the largest |x - z|.
    """
    check_groups(statistics, options.channel_group)
    row_of = rows_of_steps(statistics, granularity, rule, bits, options)
    is_listed = granularity not in ("polynomial", *DYNAMIC)
    layers = {}
    for name in statistics.input_of:
        half, shift = row_ranges(statistics, name, row_of, rule, bits, options)
        of_rows = np.full(len(half), bits)
        listed = of_rows[: None if is_listed else 1]
        layers[name] = layer_entry(
            statistics, name, granularity, options, row_of, listed, half, shift
        )  # fmt: skip
        layers[name] |= shift_report(
            statistics, name, granularity, options, row_of, rule, of_rows
        )  # fmt: skip
    return {
        **header(statistics, granularity, row_of),
        "configuration": {"bits": bits, **scale_record(granularity, rule, options)},
        "layers": layers,
    }
