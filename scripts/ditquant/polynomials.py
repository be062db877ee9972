"""Ranges as a low-degree polynomial in sigma: a few numbers a layer, smooth over the schedule.

The logarithm of the range is fitted, since ranges are positive and drift by factors. A fit by least
squares runs below about half of what was measured, and values beyond a range are clipped; so the
polynomial is raised until it is nowhere below a measured range.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

VARIABLES = ("sigma", "log_sigma")

# Above what float32 loses between a range in the file and the scale that a kernel uses.
_MARGIN = 1e-6


def variable_of(sigmas: np.ndarray, variable: str) -> np.ndarray:
    """What the polynomial is in: sigma itself, or ln sigma, which spreads the low sigmas out."""
    sigmas = np.asarray(sigmas, dtype=np.float64)
    return np.log(sigmas) if variable == "log_sigma" else sigmas


def evaluate(coefficients: Sequence[float], x: np.ndarray) -> np.ndarray:
    """sum_k c_k x^k, the constant first."""
    return np.asarray(np.polynomial.polynomial.polyval(x, np.asarray(coefficients)))


def least_squares(x: np.ndarray, values: np.ndarray, degree: int) -> list[float]:
    """Coefficients of the fit by least squares, the constant first, in ten significant digits.

    Args:
        x, values: (S,) each; the degree is at most S - 1.
    """
    fitted = np.polynomial.polynomial.polyfit(x, values, min(degree, len(x) - 1))
    return [float(f"{coefficient:.10g}") for coefficient in fitted]


def upper_fit(x: np.ndarray, log_range: np.ndarray, degree: int) -> list[float]:
    """The same, raised by a constant so that it is above every measured value.

    Returns:
        Coefficients p with sum_k p_k x^k > log_range at every x.
    """
    coefficients = least_squares(x, log_range, degree)
    short = float((log_range - evaluate(coefficients, x)).max())
    # At a degree of S - 1 the fit is exact, and the constant only moves by the margin.
    coefficients[0] = float(f"{coefficients[0] + max(short, 0.0) + _MARGIN:.10g}")
    return coefficients
