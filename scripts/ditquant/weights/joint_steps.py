"""Steps of simulated activation quantizers that are learned together with the rounding of weights.

TaQ-DiT (arXiv 2411.14172); the quantizers themselves and their gradients are in `lsq`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..backend import mx
from ..network.blocks import Linear
from .loss_scale import Moved, Step, where_taken
from .lsq import ActivationQuantizer, dropped, quantize
from .rounding_kernels import adam_step


@dataclass(frozen=True)
class Joint:
    """Joint learning of activation quantizers.

    Attributes:
        quantizers: `blocks.shared_input` of a linear -> its quantizer at the start.
        input_of: linear's name -> key in `quantizers`.
        learning_rate: of Adam on the steps, with a cosine to 0.
        drop: share of elements left unquantized in each iteration (QDrop).
    """

    quantizers: dict[str, ActivationQuantizer]
    input_of: dict[str, str]
    learning_rate: float
    drop: float


def quantizing(
    joint: Joint, steps: Sequence[mx.array], key: mx.array
) -> Callable[[Linear, mx.array], mx.array]:
    """(linear, its input) -> the input quantized with `steps`, but for what is dropped by `key`."""
    places = {name: index for index, name in enumerate(joint.quantizers)}
    keys = mx.random.split(mx.random.split(key)[1], len(places))

    def see(linear: Linear, x: mx.array) -> mx.array:
        name = joint.input_of[linear.name]
        index = places[name]
        rounded = quantize(x, joint.quantizers[name], steps[index])
        return dropped(x, rounded, joint.drop, keys[index])

    return see


def moved_steps(
    joint: Joint, before: Sequence[Moved], slopes: Sequence[mx.array], rate: mx.array, step: Step
) -> list[Moved]:
    """The quantizers' steps and their moments after a step of Adam at a learning rate."""
    # A step of zero would divide by zero; a range has never to shrink that far.
    smallest = [0.01 * one.step for one in joint.quantizers.values()]
    moved = []
    for one, slope, least in zip(before, slopes, smallest, strict=True):
        value, *moments = adam_step(*one, slope * step.unscale, rate, *step.corrections)
        moved.append(where_taken(step, (mx.maximum(value, least), *moments), one))
    return moved
