"""GPTQ: codes that make up for each other, one input column after the other.

GPTQ (Frantar et al. 2022, arXiv 2210.17323) minimises the error of what a linear layer computes,

    tr((W - Q) H (W - Q)^T),    H = sum over the layer's inputs x of x x^T,

by rounding the columns in turn, and after each changing those not rounded yet so that they cancel
as much as they can of the error made. Published, with U the upper Cholesky factor of H^-1:

    q_k = round(w_k)     e = (w_k - q_k) / U_kk     W[:, k+1:] -= e U[k, k+1:]

Written this way H has to be inverted. The same codes come from H = R R^T with R upper triangular
(R = U^-1), which is Babai's nearest-plane algorithm (Chen et al. 2025, arXiv 2507.18553): with
D = W - Q for the columns rounded so far,

    q_k = round(w_k + sum_{j<k} D[:, j] R_jk / R_kk)

since e = D R. That is one Cholesky factorisation, no inverse, and W itself never changes. Sums over
finished columns are one matrix product for each block of columns.

Scales and zero points are given (`grids.Scales`) and stay, so the codes pack exactly and columns
may be taken in any order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..backend import mx, to_numpy
from ..errors import UserError
from ..finite import check_finite
from .grids import Scales

# Columns rounded between two matrix products.
_BLOCK = 128
# A damping above this would make the layer's inputs all but uncorrelated.
_LARGEST_DAMPING = 1.0
# Rows of one float32 product of `moment`.
_ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class Factor:
    """A factorised second-moment matrix; layers that read the same input share it.

    Attributes:
        upper: R (inputs, inputs) float64, upper triangular, in the order below: R R^T is the damped
            H[order][:, order].
        order: (inputs,) the columns in the order in which they are rounded.
        damping: what was added to the diagonal, in units of its mean; larger than asked for if the
            matrix was singular with less.
    """

    upper: np.ndarray
    order: np.ndarray
    damping: float


def moment(x: mx.array) -> np.ndarray:
    """H = sum over rows of x^T x, (channels, channels) float64.

    Args:
        x: (..., channels) of any float dtype; what a layer reads, one row a token.
    """
    x = x.reshape(-1, x.shape[-1])
    total = np.zeros((x.shape[-1], x.shape[-1]))
    for start in range(0, len(x), _ROWS_AT_ONCE):
        rows = x[start : start + _ROWS_AT_ONCE].astype(mx.float32)
        # Products in float32 where MLX computes; only their sum needs more.
        total += to_numpy(rows.T @ rows)
    return total


def _damped(second_moment: np.ndarray, damping: float) -> np.ndarray:
    """H + damping mean(diag H) I, float64; channels that were always 0 get the mean itself."""
    matrix = np.array(second_moment, dtype=np.float64)
    diagonal = matrix.diagonal().copy()
    mean = diagonal.mean() or 1.0
    np.fill_diagonal(matrix, np.where(diagonal > 0, diagonal + damping * mean, mean))
    return matrix


def factorize(second_moment: np.ndarray, damping: float, name: str = "The layer") -> Factor:
    """Factorises H for `gptq_codes`, damped tenfold until it is positive definite.

    The columns with the largest diagonal are rounded first, while most columns are left to make up
    for their errors ("act-order").

    Args:
        second_moment: H (inputs, inputs), symmetric.
        damping: share of mean(diag H) added to the diagonal.
        name: of the layer, for the message.

    Raises:
        UserError: H is not finite, or cannot be factorised with any damping up to 1.
    """
    check_finite({"the second moments": second_moment}, f"of the inputs of {name}")
    order = np.argsort(-second_moment.diagonal(), kind="stable")
    while True:
        matrix = _damped(second_moment, damping)
        try:
            # The lower factor of the reversed matrix, reversed, is the upper one.
            reverse = order[::-1]
            lower = np.linalg.cholesky(matrix[np.ix_(reverse, reverse)])
        except np.linalg.LinAlgError:
            if damping >= _LARGEST_DAMPING:
                raise UserError(
                    f"{name}: the second moments of its inputs are not positive definite even with "
                    f"a damping of {damping:g}. Use more calibration images (weights.num_images) "
                    "or another rounding for this recipe."
                ) from None
            damping = min(max(10 * damping, 1e-4), _LARGEST_DAMPING)
            continue
        return Factor(np.ascontiguousarray(lower[::-1, ::-1]), order, damping)


def gptq_codes(weight: mx.array, scales: Scales, factor: Factor) -> mx.array:
    """Fractional codes (`grids.fractional_codes`) that took over the errors of columns before.

    Rounded to nearest they are GPTQ's codes; a learned rounding can start from them. A channel that
    was always 0 in calibration does not matter to the error and is rounded to nearest. At 8 bits
    the last half step of the storage's own rounding is not seen (`grids`).

    Args:
        weight: (outputs, inputs), any float dtype.
        scales: the grid over it.
        factor: of the layer's inputs.

    Returns:
        (outputs, inputs) float32.
    """
    upper, order = factor.upper, factor.order
    # One row an input column: a column of W is contiguous, and so is every product below.
    target = to_numpy(weight.astype(mx.float32)).T[order].astype(np.float64)
    step = to_numpy(scales.scales).T.astype(np.float64)
    zero = to_numpy(scales.zeros).T.astype(np.float64)
    difference = np.empty_like(target)
    codes = np.empty_like(target)
    for start in range(0, len(order), _BLOCK):
        stop = min(start + _BLOCK, len(order))
        carried = upper[:start, start:stop].T @ difference[:start]
        local = np.ascontiguousarray(upper[start:stop, start:stop].T)
        for k in range(start, stop):
            row = k - start
            carry = carried[row] + local[row, :row] @ difference[start:k]
            group = order[k] // scales.group_size
            one = (target[k] + carry / local[row, row]) / step[group] + zero[group]
            code = np.clip(np.rint(one), 0, 2**scales.bits - 1)
            difference[k] = target[k] - step[group] * (code - zero[group])
            codes[order[k]] = one
    return mx.array(np.ascontiguousarray(codes.T).astype(np.float32))
