"""From activation statistics to scales: fits a scheme to what was measured.

Ranges change along the schedule, so scales follow sigma (TaQ-DiT's "time-aware", arXiv 2411.14172),
as the granularity of the scheme says. Inference looks scales up by sigma, because it may use other
steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..finite import check_finite
from .channel_ranges import average_midrange, channel_ranges, check_groups
from .clip_errors import ClipErrors, Shares, errors_of_rows, shares_of_inputs
from .granularity import RowRanges
from .input_statistics import InputStatistics, Statistics
from .intervals import range_and_shift, shift_errors
from .learned_ranges import Intervals, scaled_to_rows
from .scheme import TIER_BITS, ActivationScheme
from .segments import grouped
from .summary import float32_list, measurement_of, rounded


class Fit:
    """What a scheme makes of statistics, but for the choice of bits.

    Attributes:
        row_of: row of each measured step.
        clip_errors: bits -> input name -> (rows, shares) errors of the tried ranges, see
            `clip_errors`; empty where none were tried.
    """

    def __init__(
        self,
        statistics: Statistics,
        scheme: ActivationScheme,
        learned: Intervals | None = None,
        clips: ClipErrors | None = None,
        shares: Shares | None = None,
    ):
        """Finds the rows of the configuration.

        Args:
            learned: of `learned_ranges`, for the range "learned".
            clips: of `measure_clips`, where the scheme tries shorter ranges.
            shares: where ranges end, for a scheme whose ranges are being tried.

        Raises:
            UserError: groups of channels that do not fill an input.
        """
        check_groups(statistics, scheme.channel_group)
        self.statistics = statistics
        self.scheme = scheme
        self.clip_errors: dict[int, dict[str, np.ndarray]] = {}
        self._learned = learned or {} if scheme.takes_learned else {}
        # Ranges that choose the rows are whole: shares belong to rows.
        self._shares: Shares = {}
        steps = len(statistics.sigmas)
        self.row_of = list(range(steps))
        self.row_of = scheme.granularity.rows(steps, self._log_ranges)
        if clips is not None and scheme.clips is not None:
            self.clip_errors = errors_of_rows(statistics, self.row_of, clips)
            shares = shares_of_inputs(self.clip_errors)
        self._shares = shares or {}

    @property
    def rows(self) -> int:
        return max(self.row_of) + 1

    def _log_ranges(self) -> np.ndarray:
        """(inputs, S) base 2, of the bits of one tier, or of the largest."""
        bits = self.scheme.bits or TIER_BITS[-1]
        return np.log2([self.ranges(name, bits)[0] for name in self.statistics.inputs])

    def measured(self, name: str) -> InputStatistics:
        """Statistics of a linear's input over the rows."""
        return grouped(self.statistics.of(name), self.row_of)

    def _share(self, name: str, bits: int) -> np.ndarray | float:
        return self._shares.get(bits, {}).get(self.statistics.input_of[name], 1.0)

    def _is_learned(self, name: str) -> bool:
        return self.statistics.input_of[name] in self._learned

    def ranges(self, name: str, bits: int) -> tuple[np.ndarray, np.ndarray]:
        """(R,) half ranges and (R,) shifts of a linear's input, learned ones or by the rule."""
        if self._is_learned(name):
            interval = self._learned[self.statistics.input_of[name]]
            return scaled_to_rows(self.measured(name), interval, bits)
        return range_and_shift(
            self.measured(name), name in self.statistics.post_gelu, self.scheme.range, bits,
            self.scheme.shift, self._share(name, bits),
        )  # fmt: skip

    def entry(self, name: str, bits: np.ndarray) -> dict[str, Any]:
        """One layer of the configuration, as `quant_config` describes it.

        Args:
            bits: (R,) of each row.

        Raises:
            UserError: a range or a shift is NaN or infinite.
        """
        by_bits = {int(b): self.ranges(name, int(b)) for b in np.unique(bits)}
        half, shift = (
            np.array([by_bits[int(b)][part][row] for row, b in enumerate(bits)]) for part in (0, 1)
        )
        check_finite({"the ranges": half, "the shifts": shift}, f"of the inputs of {name}")
        scheme, granularity = self.scheme, self.scheme.granularity
        measured = self.statistics.of(name)
        is_shifted = self._is_learned(name) or name in self.statistics.post_gelu
        if scheme.tiers is None and not granularity.is_listed:
            bits = bits[:1]
        entry: dict[str, Any] = {
            "input": self.statistics.input_of[name],
            "channels": int(measured.channel_max.shape[1]),
            "bits": [int(b) for b in bits],
        }
        if not is_shifted:
            z = np.zeros(entry["channels"], np.float32)
            if scheme.channel_shift:
                z = average_midrange(self.statistics, name)
                entry["channel_shift"] = float32_list(z)
            if not granularity.is_dynamic:
                half, factors = channel_ranges(self.measured(name), half, z, scheme.channel_group)
                if scheme.channel_group is not None:
                    factors = granularity.kept_factors(factors)
                    entry["multipliers"] = [float32_list(row) for row in factors]
        lowest = measured.minimum.min(keepdims=True)
        ranges = RowRanges(self.statistics.sigmas, bits, half, shift, is_shifted, lowest)
        entry |= granularity.scale_fields(ranges)
        entry["input_amax"] = float32_list(measured.absmax.max(keepdims=True))[0]
        if is_shifted:
            entry |= granularity.shift_fields(ranges)
        if self._is_learned(name):
            entry["learned"] = True
        return entry

    def shift_report(self, name: str, bits: np.ndarray) -> dict[str, Any]:
        """Which shift `error` took in each row, and what it chose by.

        Args:
            bits: (R,).

        Returns:
            "shift_rules": R names; "shift_errors": name -> R predicted mean squared errors. Nothing
            where no such choice was made.
        """
        chooses = name in self.statistics.post_gelu and self.scheme.shift == "error"
        if not chooses or self.scheme.granularity.is_dynamic or self._is_learned(name):
            return {}
        measured, rule = self.measured(name), self.scheme.range
        by_bits = {
            b: shift_errors(measured, rule, int(b), self._share(name, int(b)))
            for b in np.unique(bits)
        }
        names = list(next(iter(by_bits.values())))
        errors = np.array([[by_bits[b][name][row] for row, b in enumerate(bits)] for name in names])
        return {
            "shift_rules": [names[best] for best in errors.argmin(axis=0)],
            "shift_errors": {name: rounded(row) for name, row in zip(names, errors, strict=True)},
        }

    def layers(self, bits_of: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
        """All layers of the configuration.

        Args:
            bits_of: linear name -> (R,).
        """
        return {
            name: self.entry(name, bits) | self.shift_report(name, bits)
            for name, bits in bits_of.items()
        }

    @property
    def header(self) -> dict[str, Any]:
        """The start of a configuration: what was measured, and the group of each measured sigma."""
        groups = {"groups": self.row_of} if self.scheme.granularity.is_grouped else {}
        return {**measurement_of(self.statistics), **groups}

    @property
    def record(self) -> dict[str, Any]:
        """What a configuration says of how its scales were made; only options that were used."""
        scheme, granularity = self.scheme, self.scheme.granularity
        used = {"granularity": granularity.name, "range": scheme.range, **granularity.record}
        if scheme.shift != "middle" and not granularity.is_dynamic:
            used["shift"] = scheme.shift
        if scheme.channel_group is not None:
            used["channel_group"] = scheme.channel_group
        if scheme.channel_shift:
            used["channel_shift"] = True
        return used
