"""How the scales of activations follow sigma: a class for each granularity.

A granularity says which measured steps share a row of the configuration, what the file says of a
layer, what holds at any sigma, and how plots describe it. A new one is a class here, registered in
`GRANULARITIES`, and its name in config/schema.yaml. Numpy, and what needs it, is imported where it
computes: the workflow reads these classes while it plans.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from .input_statistics import InputStatistics
    from .quant_config import LayerConfig

# (sigma, row, bits of the inputs) -> scales of the inputs, or none, and their shifts.
Lookup = Callable[[float, int, Sequence[int]], "tuple[np.ndarray, list[float]]"]


@dataclass(frozen=True)
class RowRanges:
    """The ranges of one layer's input in each of R rows.

    Attributes:
        sigmas: (S,) of the measured steps; S = R but for shared rows.
        bits: (R,), or (1,) for all rows.
        half, shift: (R,) half ranges and shifts, see `intervals.range_and_shift`.
        is_shifted: whether the input has a shift.
        lowest: the smallest value that was measured.
    """

    sigmas: np.ndarray
    bits: np.ndarray
    half: np.ndarray
    shift: np.ndarray
    is_shifted: bool
    lowest: np.ndarray


@dataclass(frozen=True)
class Granularity(ABC):
    """A granularity; fields are the options below `activations` that only it reads.

    Attributes:
        name: in the configuration and in files.
        label: what plots call it.
        is_listed: files list a scale for each row.
        is_grouped: a row holds several measured sigmas; the file says which.
        is_continuous: every sigma has scales of its own.
        ranges_over: of what ranges are found at run time; None: they are known before.
        spread_label: what the band of scales in a plot is, with one scale for all channels and with
            groups of them; empty: there is no band.
        reach_label: what the line of ranges in a plot is, likewise.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    is_listed: ClassVar[bool] = False
    is_grouped: ClassVar[bool] = False
    is_continuous: ClassVar[bool] = False
    ranges_over: ClassVar[Literal["tensor", "token"] | None] = None
    spread_label: ClassVar[tuple[str, str]] = (
        "",
        "smallest to largest group of channels (line: largest)",
    )
    reach_label: ClassVar[tuple[str, str]] = (
        "value of the largest code, by σ",
        "value of the largest code, by σ (band: of all groups of channels)",
    )

    @property
    def is_dynamic(self) -> bool:
        """Whether ranges are found at run time."""
        return self.ranges_over is not None

    @property
    def record(self) -> dict[str, Any]:
        """The options, as files and parameters of jobs name them."""
        return asdict(self)

    def rows(self, steps: int, log_ranges: Callable[[], np.ndarray]) -> list[int]:
        """The row of each measured step.

        Args:
            log_ranges: gives (inputs, S) logarithms of each step's own ranges, base 2.
        """
        return list(range(steps))

    def kept_factors(self, factors: np.ndarray) -> np.ndarray:
        """The multipliers that a file keeps of (R, groups), see `channel_ranges`."""
        return factors

    def reach(self, measured: InputStatistics) -> np.ndarray:
        """(3, S) the |x| that run-time ranges of the measured images reach: low, usual, high."""
        raise TypeError(f"ranges of {self.name} are not found at run time")

    @abstractmethod
    def scale_fields(self, ranges: RowRanges) -> dict[str, Any]:
        """What a layer of the file says of its scales, see `quant_config`."""

    @abstractmethod
    def shift_fields(self, ranges: RowRanges) -> dict[str, Any]:
        """What it says of its shifts, of an input that has some."""

    @abstractmethod
    def read(self, where: str, entry: Mapping[str, Any], rows: int) -> dict[str, Any]:
        """Fields of a `LayerConfig` from a layer of the file.

        Raises:
            UserError: entries that do not fit together; `where` names the layer.
        """

    @abstractmethod
    def lookup(self, layers: Sequence[LayerConfig], sigmas: Sequence[float], rows: int) -> Lookup:
        """What gives the scales and shifts of some layers; sigmas are those that were measured."""


def _as_float32(values: np.ndarray) -> list[float]:
    from .summary import float32_list

    return float32_list(values)


def by_row(entries: Sequence[Sequence[float]], rows: int) -> np.ndarray:
    """(rows, n) of n inputs that have one entry for all rows, or one each."""
    import numpy as np

    return np.stack([np.broadcast_to(np.asarray(entry), rows) for entry in entries], axis=1)


def _check_rows(where: str, fits: bool, rows: int, what: str, lengths: Sequence[int]) -> None:
    if not fits:
        bits, scales, shifts = lengths
        raise UserError(
            f"{where}: bits, scales and shifts must have one entry each, or one for each of the "
            f"{rows} {what}; found {bits}, {scales} and {shifts}. Delete the file and run again."
        )


class _Listed(Granularity):
    """Scales are listed row by row."""

    is_listed = True

    def scale_fields(self, ranges: RowRanges) -> dict[str, Any]:
        import numpy as np

        from .quant_params import largest_code

        codes = np.array([largest_code(int(bits)) for bits in ranges.bits])
        return {"scales": _as_float32(ranges.half / codes)}

    def shift_fields(self, ranges: RowRanges) -> dict[str, Any]:
        return {"shifts": _as_float32(ranges.shift)}

    def read(self, where: str, entry: Mapping[str, Any], rows: int) -> dict[str, Any]:
        bits, scales = tuple(entry["bits"]), tuple(entry["scales"])
        shifts = tuple(entry.get("shifts", [0.0] * len(scales)))
        lengths = (len(bits), len(scales), len(shifts))
        fits = len(set(lengths)) == 1 and len(scales) in (1, rows)
        _check_rows(where, fits, rows, "groups" if self.is_grouped else "sigmas", lengths)
        return {"bits": bits, "scales": scales, "shifts": shifts}

    def lookup(self, layers: Sequence[LayerConfig], sigmas: Sequence[float], rows: int) -> Lookup:
        scales = by_row([layer.scales for layer in layers], rows)
        shifts = by_row([layer.shifts for layer in layers], rows)
        return lambda sigma, row, bits: (scales[row], shifts[row].tolist())


@dataclass(frozen=True)
class Static(_Listed):
    """One scale for each layer."""

    name = "static"
    label = "one scale for each layer"

    def rows(self, steps: int, log_ranges: Callable[[], np.ndarray]) -> list[int]:
        return [0] * steps


@dataclass(frozen=True)
class Step(_Listed):
    """A scale for each measured sigma."""

    name = "step"
    label = "a scale for each measured σ"


@dataclass(frozen=True)
class Group(_Listed):
    """A scale for each group of adjacent sigmas, cut where ranges drift (`segments`).

    Attributes:
        groups: how many; fewer where fewer steps were measured.
    """

    groups: int
    name = "group"
    label = "a scale for each σ group"
    is_grouped = True

    def rows(self, steps: int, log_ranges: Callable[[], np.ndarray]) -> list[int]:
        from .segments import segment

        return segment(log_ranges(), self.groups)


@dataclass(frozen=True)
class Polynomial(Granularity):
    """The logarithm of the range is a polynomial in sigma (`polynomials`).

    Attributes:
        degree: of it; less where fewer steps were measured.
        variable: "sigma" or "log_sigma".
    """

    degree: int
    variable: str
    name = "polynomial"
    label = "a polynomial in σ for each layer"
    is_continuous = True

    def kept_factors(self, factors: np.ndarray) -> np.ndarray:
        # One set for all sigmas: what is needed at any of them.
        return factors.max(axis=0, keepdims=True)

    def scale_fields(self, ranges: RowRanges) -> dict[str, Any]:
        import numpy as np

        from .polynomials import evaluate, least_squares, upper_fit, variable_of

        x, half, found = variable_of(ranges.sigmas, self.variable), ranges.half, {}
        if ranges.is_shifted:
            fitted = least_squares(x, ranges.shift, self.degree)
            found["shift_polynomial"] = fitted
            # Around a shift that is a little off, the same interval needs a wider range.
            half = half + np.abs(evaluate(fitted, x) - ranges.shift)
        return {**found, "log_range": upper_fit(x, np.log(half), self.degree)}

    def shift_fields(self, ranges: RowRanges) -> dict[str, Any]:
        return {}

    def read(self, where: str, entry: Mapping[str, Any], rows: int) -> dict[str, Any]:
        bits, log_range = tuple(entry["bits"]), tuple(entry["log_range"])
        shift = tuple(entry.get("shift_polynomial", [0.0]))
        if len(bits) not in (1, rows) or not log_range or not shift:
            raise UserError(
                f"{where}: a polynomial needs coefficients, and bits one entry or one for each of "
                f"the {rows} sigmas; found {len(log_range)} and {len(bits)}. Delete the file and "
                "run again."
            )
        return {
            "bits": bits, "scales": (), "shifts": (), "log_range": log_range,
            "shift_polynomial": shift,
        }  # fmt: skip

    def lookup(self, layers: Sequence[LayerConfig], sigmas: Sequence[float], rows: int) -> Lookup:
        import numpy as np

        from .polynomials import coefficients, evaluate, variable_of
        from .quant_params import largest_code

        log_ranges = coefficients([layer.log_range for layer in layers])
        shifts = coefficients([layer.shift_polynomial for layer in layers])

        def look_up(sigma: float, row: int, bits: Sequence[int]) -> tuple[np.ndarray, list[float]]:
            # Beyond the measured sigmas the value at the end holds.
            inside = min(max(sigma, sigmas[-1]), sigmas[0])
            x = float(variable_of(inside, self.variable))
            codes = np.array([largest_code(b) for b in bits])
            return np.exp(evaluate(log_ranges, x)) / codes, evaluate(shifts, x).tolist()

        return look_up


class _Dynamic(Granularity):
    """Ranges are found at run time; files hold bits and shifts."""

    spread_label = ("", "")

    def scale_fields(self, ranges: RowRanges) -> dict[str, Any]:
        return {}

    def shift_fields(self, ranges: RowRanges) -> dict[str, Any]:
        import numpy as np

        from .intervals import GELU_LOW

        # The middle of a range needs the range; the lowest value is known before.
        return {"shifts": _as_float32(np.minimum(GELU_LOW, ranges.lowest)), "unsigned": True}

    def read(self, where: str, entry: Mapping[str, Any], rows: int) -> dict[str, Any]:
        bits = tuple(entry["bits"])
        shifts = tuple(entry.get("shifts", [0.0] * len(bits)))
        fits = {len(bits), len(shifts)} <= {1, rows} and len(bits) > 0
        _check_rows(where, fits, rows, "sigmas", (len(bits), 0, len(shifts)))
        unsigned = bool(entry.get("unsigned", False))
        return {"bits": bits, "scales": (), "shifts": shifts, "unsigned": unsigned}

    def lookup(self, layers: Sequence[LayerConfig], sigmas: Sequence[float], rows: int) -> Lookup:
        import numpy as np

        shifts, none = by_row([layer.shifts for layer in layers], rows), np.zeros(0)
        return lambda sigma, row, bits: (none, shifts[row].tolist())


@dataclass(frozen=True)
class DynamicTensor(_Dynamic):
    """The range of all of an input, found at run time, of each picture by itself."""

    name = "dynamic-tensor"
    label = "made at run time for each layer"
    ranges_over = "tensor"
    reach_label = ("range of a tensor",) * 2

    def reach(self, measured: InputStatistics) -> np.ndarray:
        import numpy as np

        return np.tile(measured.absmax.astype(np.float64), (3, 1))


@dataclass(frozen=True)
class DynamicToken(_Dynamic):
    """The range of each token, found at run time."""

    name = "dynamic-token"
    label = "made at run time for each token"
    ranges_over = "token"
    spread_label = (
        "nine in ten tokens (line: median)",
        "the widest group of nine in ten tokens (line: of the median token)",
    )
    reach_label = (
        "range of the median token (band: nine in ten tokens)",
        "range of the median token, its widest group (band: nine in ten tokens)",
    )

    def reach(self, measured: InputStatistics) -> np.ndarray:
        import numpy as np

        from .histogram import quantile

        return np.array([quantile(measured.token_histogram, share) for share in (0.05, 0.5, 0.95)])


GRANULARITIES: dict[str, type[Granularity]] = {
    one.name: one for one in (Static, Step, Group, Polynomial, DynamicTensor, DynamicToken)
}


def granularity_of(options: Mapping[str, Any]) -> Granularity:
    """The granularity that a mapping names, with the options that it reads.

    Args:
        options: "granularity", and the options among other keys.

    Raises:
        KeyError: an unknown name, or a missing option.
    """
    kind = GRANULARITIES[options["granularity"]]
    return kind(**{field.name: options[field.name] for field in fields(kind)})


def options_of(kind: type[Granularity]) -> frozenset[str]:
    """The options that only this granularity reads."""
    return frozenset(field.name for field in fields(kind))
