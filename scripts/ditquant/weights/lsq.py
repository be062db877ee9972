"""Learned step sizes of simulated activation quantizers, for joint reconstruction.

LSQ (Esser et al. 2020, arXiv 1902.08153) learns a quantizer's step size s together with what else
is learned. Rounding passes the gradient straight through (STE),

    x_q = (clip(round(x / s) + z, 0, n) - z) s,      d x_q / d s scaled by g = 1 / sqrt(N n),

with N elements and n = 2^bits - 1: the step size then moves as fast as the weights. TaQ-DiT
(arXiv 2411.14172) learns it together with the rounding of the weights, since either alone settles
where the other was, and leaves every element unquantized with probability 1/2 (QDrop,
arXiv 2203.05740), so that the rounding is not learned for one exact error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..backend import mx
from ..network.blocks import Linear
from .loss_scale import Moved, Update, where_taken
from .rounding import adam_step


@dataclass(frozen=True)
class ActivationQuantizer:
    """An asymmetric quantizer for a whole tensor.

    Attributes:
        step_size: s, scalar float32; what is learned.
        zero: z, the code of the value 0.
        bits: of a code.
    """

    step_size: mx.array
    zero: float
    bits: int


def range_quantizer(low: float, high: float, bits: int) -> ActivationQuantizer:
    """The quantizer whose codes cover [low, high] and 0."""
    last = 2**bits - 1
    low, high = min(low, 0.0), max(high, 0.0)
    size = max((high - low) / last, 1e-8)
    zero = float(min(max(round(-low / size), 0), last))
    return ActivationQuantizer(mx.array(size, dtype=mx.float32), zero, bits)


def _straight_through(x: mx.array) -> mx.array:
    """round(x) with the gradient of x."""
    return x + mx.stop_gradient(mx.round(x) - x)


def quantize(x: mx.array, quantizer: ActivationQuantizer, step_size: mx.array) -> mx.array:
    """x on the quantizer's grid in the dtype of x; differentiable in x and `step_size`.

    Args:
        step_size: the learned one, in place of the quantizer's own.
    """
    last = 2**quantizer.bits - 1
    slowed = 1.0 / math.sqrt(x.size * last)
    learned = mx.stop_gradient(step_size - step_size * slowed) + step_size * slowed
    codes = mx.clip(x.astype(mx.float32) / learned + quantizer.zero, 0, last)
    return ((_straight_through(codes) - quantizer.zero) * learned).astype(x.dtype)


def dropped(x: mx.array, quantized: mx.array, share: float, key: mx.array) -> mx.array:
    """`quantized`, but x itself in a random `share` of the elements (QDrop)."""
    if share <= 0:
        return quantized
    return mx.where(mx.random.uniform(shape=x.shape, key=key) < share, x, quantized)


@dataclass(frozen=True)
class Joint:
    """Activation quantizers that are learned together with the rounding of weights.

    Attributes:
        quantizers: `blocks.shared_input` of a linear -> its quantizer at the start.
        input_of: linear's name -> key in `quantizers`.
        learning_rate: of Adam on the step sizes, with a cosine to 0.
        drop: share of elements left unquantized in each iteration.
    """

    quantizers: dict[str, ActivationQuantizer]
    input_of: dict[str, str]
    learning_rate: float
    drop: float

    def quantizing(
        self, step_sizes: Sequence[mx.array], key: mx.array
    ) -> Callable[[Linear, mx.array], mx.array]:
        """(linear, its input) -> the input quantized, but for what is dropped by `key`."""
        places = {name: index for index, name in enumerate(self.quantizers)}
        keys = mx.random.split(mx.random.split(key)[1], len(places))

        def see(linear: Linear, x: mx.array) -> mx.array:
            name = self.input_of[linear.name]
            index = places[name]
            rounded = quantize(x, self.quantizers[name], step_sizes[index])
            return dropped(x, rounded, self.drop, keys[index])

        return see

    def moved(
        self, before: Sequence[Moved], slopes: Sequence[mx.array], rate: mx.array, update: Update
    ) -> list[Moved]:
        """The step sizes and their moments after an update by Adam at a learning rate."""
        # A step size of zero would divide by zero; a range has never to shrink that far.
        smallest = [0.01 * one.step_size for one in self.quantizers.values()]
        moved = []
        for one, slope, least in zip(before, slopes, smallest, strict=True):
            value, *moments = adam_step(*one, slope * update.unscale, rate, *update.corrections)
            moved.append(where_taken(update, (mx.maximum(value, least), *moments), one))
        return moved
