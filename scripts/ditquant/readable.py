"""Numbers as people read them."""

from __future__ import annotations

import math


def _three_digits(value: float) -> str:
    """15.0, 0.0200, 257: three significant digits, zeros included."""
    return f"{value:#.3g}".rstrip(".")


def _significant(value: float) -> str:
    """Three significant digits, 1.2 × 10⁻⁵ below a thousandth."""
    if value == 0:
        return "0"
    if abs(value) >= 1e-3:
        return _three_digits(value)
    mantissa, exponent = f"{value:.1e}".split("e")
    superscript = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa} × 10{superscript}"


def _bytes(value: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{_three_digits(value / size)} {unit}"
    return f"{value:.0f} B"


def _seconds(value: float) -> str:
    if value < 1:
        return f"{1000 * value:.0f} ms"
    if value < 100:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


_FORMATS = {
    "sig": _significant,
    "bytes": _bytes,
    "seconds": _seconds,
    "db": lambda value: f"{value:.1f} dB",
    "percent": lambda value: f"{100 * value:.0f} %",
    "percent1": lambda value: f"{100 * value:.1f} %",
    "times": lambda value: f"{value:.2f} ×",
}


def fmt(value: float | None, how: str) -> str:
    """A number for people; a dash where there is none.

    Args:
        how: a name of `_FORMATS`, or a number of decimals ("1").
    """
    if value is None:
        return "–"
    if math.isinf(value):
        return "∞"
    return _FORMATS[how](value) if how in _FORMATS else f"{value:.{int(how)}f}"
