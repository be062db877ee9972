"""Learned step sizes of simulated activation quantizers, for joint reconstruction.

LSQ (Esser et al. 2020, arXiv 1902.08153) learns a quantizer's step s together with what else is
learned. Rounding passes the gradient straight through (STE),

    x_q = (clip(round(x / s) + z, 0, n) - z) s,      d x_q / d s scaled by g = 1 / sqrt(N n),

with N elements and n = 2^bits - 1: the step then moves as fast as the weights. TaQ-DiT
(arXiv 2411.14172) learns it together with the rounding of the weights, since either alone settles
where the other was, and leaves every element unquantized with probability 1/2 (QDrop,
arXiv 2203.05740), so that the rounding is not learned for one exact error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..backend import mx


@dataclass(frozen=True)
class ActivationQuantizer:
    """An asymmetric quantizer for a whole tensor.

    Attributes:
        step: s, scalar float32; what is learned.
        zero: z, the code of the value 0.
        bits: of a code.
    """

    step: mx.array
    zero: float
    bits: int


def range_quantizer(low: float, high: float, bits: int) -> ActivationQuantizer:
    """The quantizer whose codes cover [low, high] and 0."""
    last = 2**bits - 1
    low, high = min(low, 0.0), max(high, 0.0)
    step = max((high - low) / last, 1e-8)
    return ActivationQuantizer(
        mx.array(step, dtype=mx.float32), float(min(max(round(-low / step), 0), last)), bits
    )


def _straight_through(x: mx.array) -> mx.array:
    """round(x) with the gradient of x."""
    return x + mx.stop_gradient(mx.round(x) - x)


def quantize(x: mx.array, quantizer: ActivationQuantizer, step: mx.array) -> mx.array:
    """x on the quantizer's grid in the dtype of x; differentiable in x and `step`.

    Args:
        step: the learned step, in place of the quantizer's own.
    """
    last = 2**quantizer.bits - 1
    slowed = 1.0 / math.sqrt(x.size * last)
    learned = mx.stop_gradient(step - step * slowed) + step * slowed
    codes = mx.clip(x.astype(mx.float32) / learned + quantizer.zero, 0, last)
    return ((_straight_through(codes) - quantizer.zero) * learned).astype(x.dtype)


def dropped(x: mx.array, quantized: mx.array, share: float, key: mx.array) -> mx.array:
    """`quantized`, but x itself in a random `share` of the elements (QDrop)."""
    if share <= 0:
        return quantized
    return mx.where(mx.random.uniform(shape=x.shape, key=key) < share, x, quantized)
