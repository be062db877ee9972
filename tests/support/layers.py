"""What weights do to the output of a single layer."""

from __future__ import annotations

import numpy as np

from ditquant.backend import mx, to_numpy
from ditquant.weights.gptq import Factor, gptq_codes
from ditquant.weights.grids import Scales, fractional_codes, nearest_codes


def layer_error(weight: mx.array, values: mx.array, second_moment: np.ndarray) -> float:
    """tr((W - Q) H (W - Q)^T) / tr(W H W^T): the layer's relative squared output error."""
    exact = to_numpy(weight.astype(mx.float32)).astype(np.float64)
    difference = exact - to_numpy(values.astype(mx.float32))
    power = float(np.sum((exact @ second_moment) * exact))
    return float(np.sum((difference @ second_moment) * difference)) / power


def rounded_by_gptq(weight: mx.array, scales: Scales, factor: Factor) -> mx.array:
    """GPTQ's codes."""
    return nearest_codes(gptq_codes(weight, scales, factor), scales.bits)


def nearest(weight: mx.array, scales: Scales) -> mx.array:
    """Codes of rounding to nearest."""
    return nearest_codes(fractional_codes(weight, scales), scales.bits)
