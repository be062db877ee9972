"""Ranges as a low-degree polynomial in sigma: a few numbers a layer, smooth over the schedule.

The logarithm of the range is fitted, since ranges are positive and drift by factors. A fit by least
squares runs below about half of what was measured, and values beyond a range are clipped; so the
polynomial is fitted to the upper side and raised until it is nowhere below a measured range.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

VARIABLES = ("sigma", "log_sigma")

# Above what float32 loses between a range in the file and the scale that a kernel uses.
_MARGIN = 1e-6
# How much more a value above the fit counts; 1 is plain least squares.
_EMPHASES = (1.0, 3.0, 10.0, 30.0, 100.0)
_REWEIGHTINGS = 8


def variable_of(sigmas: np.ndarray | float, variable: str) -> np.ndarray:
    """What the polynomial is in: sigma itself, or ln sigma, which spreads the low sigmas out."""
    sigmas = np.asarray(sigmas, dtype=np.float64)
    return np.log(sigmas) if variable == "log_sigma" else sigmas


def evaluate(coefficients: Sequence[float] | np.ndarray, x: float | np.ndarray) -> np.ndarray:
    """sum_k c_k x^k by Horner's rule.

    Args:
        coefficients: the constant first; (degree + 1, n) for n polynomials at one x.
    """
    value = np.zeros(())
    for coefficient in reversed(coefficients):
        value = value * x + coefficient
    return value


def coefficients(entries: Sequence[Sequence[float]]) -> np.ndarray:
    """(degree + 1, n) of n polynomials, the shorter ones filled up with zeros."""
    terms = max(len(entry) for entry in entries)
    return np.array([[*entry, *[0.0] * (terms - len(entry))] for entry in entries]).T


def least_squares(x: np.ndarray, values: np.ndarray, degree: int) -> list[float]:
    """Coefficients of the fit by least squares, the constant first, in ten significant digits.

    Args:
        x, values: (S,) each; the degree is at most S - 1.
    """
    fitted = np.polynomial.polynomial.polyfit(x, values, min(degree, len(x) - 1))
    return [float(f"{coefficient:.10g}") for coefficient in fitted]


def _raised(coefficients: list[float], x: np.ndarray, log_range: np.ndarray) -> list[float]:
    """Moved by the constant that makes it touch the largest value above it, plus the margin."""
    short = float((log_range - evaluate(coefficients, x)).max())
    return [float(f"{coefficients[0] + short + _MARGIN:.10g}"), *coefficients[1:]]


def upper_fit(x: np.ndarray, log_range: np.ndarray, degree: int) -> list[float]:
    """A polynomial that is above every measured value, and by little on average.

    Least squares that count values above the fit ever more (asymmetric least squares, Newey and
    Powell 1987), each raised to cover all; the one with the least average excess is kept. A plain
    fit would be raised by its one worst residue, often that of the first step.

    Returns:
        Coefficients p with sum_k p_k x^k > log_range at every x.
    """
    degree = min(degree, len(x) - 1)
    candidates = []
    for emphasis in _EMPHASES:
        weights = np.ones(len(x))
        for _ in range(_REWEIGHTINGS):
            fitted = np.polynomial.polynomial.polyfit(x, log_range, degree, w=weights)
            weights = np.where(log_range > evaluate(fitted, x), emphasis, 1.0)
        candidates.append(_raised([float(f"{c:.10g}") for c in fitted], x, log_range))
    return min(candidates, key=lambda raised: float(evaluate(raised, x).mean()))
