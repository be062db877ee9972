"""Dynamic loss scaling: float16 gradients that neither vanish nor overflow.

Mixed-precision training (Micikevicius et al. 2018, arXiv 1710.03740) multiplies the loss by S, so
that small gradients do not underflow float16, and divides the gradients by it. No S is right for
every block: a loud channel makes one gradient overflow where the others need the scale. So S is
found while learning. A step whose gradients are not finite is not taken and halves S; after
`GROWTH_INTERVAL` steps in a row that were taken S is doubled.

All of it stays on the device, as four numbers in one array, because the host runs ahead of it and
reads nothing back (`adaround`). Adam's bias corrections go by the steps that were taken. Schedules
go by the iteration, taken or not.

float32 and bfloat16 have the exponents of float32 and need no scale: S is 1 there, every step is
taken, and nothing is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..backend import are_finite, mx
from .divergence import SMALLER_RATE, Diverged
from .rounding import ADAM_DECAY

# Room for loud channels: where there are none S doubles as far as it can, and gradients of a small
# block are exact enough from S = 1 to 2^20.
START_SHARE = 1 / 16
# Doubling too far costs the step that overflows: 1 % of them at most. Runs have 100 to 20,000
# iterations, in which gradients shrink by orders of magnitude at most: 100 is often enough.
GROWTH_INTERVAL = 100
# Below it a gradient that overflows would have to be larger than 65504 without any scale.
SMALLEST_SCALE = 1.0
_OTHER_DTYPE = "Set model.dtype to float32 or bfloat16"

# A value and the two moments of its gradient.
Moved = tuple[mx.array, mx.array, mx.array]


@dataclass(frozen=True)
class Update:
    """What the updates of one step need: float32 scalars on the device.

    Attributes:
        is_taken: 1, or 0 if the step is not taken; None if every step is.
        unscale: what the summed gradients are multiplied by: 1 / (parts S).
        corrections: 1 / (1 - decay^t) of Adam's moments, t counting the steps taken with this one.
    """

    is_taken: mx.array | None
    unscale: mx.array
    corrections: tuple[mx.array, mx.array]


@dataclass(frozen=True)
class Scaling:
    """Where the scaling stands, read by the host.

    Attributes:
        scale: S.
        taken: steps so far, but for those that overflowed.
        error: of the last step that was taken, as `judge` got it but without the scale.
    """

    scale: float
    taken: int
    error: float


class LossScale:
    """The scale of one learning; its state is an array that `judge` advances.

    Args:
        dtype: of the gradients.
        outputs: how many outputs the error of one backward pass is a mean of.
        iterations: of the whole learning.
    """

    def __init__(self, dtype: mx.Dtype, outputs: int, iterations: int):
        self.is_dynamic = dtype == mx.float16
        # With S = outputs the gradient of an output would be about as large as its own error.
        start = 2.0 ** math.floor(math.log2(START_SHARE * outputs))
        self._start = start if self.is_dynamic else 1.0
        self._iterations = iterations
        # From the host, whose float64 it takes: 1 - 0.999 in float32 is off by 5e-5.
        counts = range(1, iterations + 1)
        corrections = [[1 / (1 - keep**taken) for keep in ADAM_DECAY] for taken in counts]
        self._corrections = mx.array(corrections, dtype=mx.float32)

    def start(self) -> mx.array:
        """The state before the first step: S, taken steps in a row, taken steps, last error."""
        return mx.array([self._start, 0.0, 0.0, 0.0], dtype=mx.float32)

    def judge(
        self, state: mx.array, error: mx.array, slopes: Sequence[mx.array], parts: int = 1
    ) -> tuple[mx.array, Update]:
        """The state after a step, and how the step is to be taken; lazy.

        Args:
            error: scaled, of the batch or summed over its parts.
            slopes: all gradients of it.
            parts: how many there were, if the gradients are summed over them.
        """
        scale, run, taken, last = mx.split(state, 4)
        is_taken = mx.ones_like(scale)
        if self.is_dynamic:
            finite = mx.stack([mx.all(mx.isfinite(array)) for array in (error, *slopes)])
            # Once the scale is used up nothing moves any more, whenever the host looks.
            is_taken = (mx.all(finite) & (scale >= SMALLEST_SCALE)).astype(mx.float32)
        corrections = self._corrections[taken.astype(mx.int32)].reshape(2)
        # Powers of two: S and 1 / S are exact.
        numbers = mx.concatenate([is_taken, (1 / parts) / scale, corrections])
        own, unscale, *both = (number.reshape(()) for number in mx.split(numbers, 4))
        run = (run + 1) * is_taken
        last = mx.where(is_taken > 0, error.reshape(1) / scale, last)
        if self.is_dynamic:
            is_grown = run >= GROWTH_INTERVAL
            scale = mx.where(is_taken > 0, mx.where(is_grown, 2 * scale, scale), scale / 2)
            scale = mx.maximum(scale, SMALLEST_SCALE / 2)
            run = mx.where(is_grown, 0.0, run)
        after = mx.concatenate([scale, run, taken + is_taken, last])
        return after, Update(own if self.is_dynamic else None, unscale, (both[0], both[1]))

    def read(self, state: mx.array, values: Sequence[mx.array] = ()) -> Scaling:
        """What the state says; waits for it.

        Args:
            values: what was learned, where that is to be looked at too.

        Raises:
            Diverged: the scale is used up, or the error or a value is not finite.
        """
        scale, _, taken, error = state.tolist()
        after = f"After {int(taken)} of {self._iterations} steps"
        if scale < SMALLEST_SCALE:
            raise Diverged(
                f"{after} its gradients overflow float16 even without a loss scale",
                f"{_OTHER_DTYPE}, or take a smaller learning rate",
            )
        if not math.isfinite(error):
            raise Diverged(f"{after} its error is no finite number", SMALLER_RATE)
        if not all(are_finite(values)):
            raise Diverged(f"{after} what it learned is no finite number", SMALLER_RATE)
        return Scaling(scale, int(taken), error)

    def noted(self, scaling: Scaling, iteration: int) -> dict[str, float]:
        """What a point of the history says of it: nothing without scaling."""
        if not self.is_dynamic:
            return {}
        return {"loss_scale": scaling.scale, "skipped": iteration - scaling.taken}

    def finished(self, state: mx.array, values: Sequence[mx.array]) -> dict[str, float] | None:
        """The last scale and how many steps of all were not taken; None without scaling.

        Args:
            values: all that was learned.

        Raises:
            Diverged: as `read`, or no step was taken.
        """
        scaling = self.read(state, values)
        if scaling.taken == 0:
            raise Diverged(
                f"Its gradients overflowed float16 in each of its {self._iterations} steps",
                f"{_OTHER_DTYPE}, or take more iterations",
            )
        if not self.is_dynamic:
            return None
        return {"last": scaling.scale, "skipped": self._iterations - scaling.taken}


def where_taken(update: Update, after: Moved, before: Moved) -> Moved:
    """`after` if the step is taken, else `before`."""
    if update.is_taken is None:
        return after
    value, mean, square = (
        mx.where(update.is_taken > 0, *pair) for pair in zip(after, before, strict=True)
    )
    return value, mean, square
