"""Detects learning that has diverged: its result is worse than no learning at all.

Learning that stopped too early, or saw too few rows, can also end worse than its start. Held-out
rows detect this, and the start is kept. Divergence is more: everything that was learned is lost,
and the recipe must be changed. The result says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import UserError

# Rounding up or down by the flip of a coin has four times the squared error of rounding to nearest:
# for a fraction f the mean of f^2 and (1 - f)^2 is 1/3 on average, min(f, 1 - f)^2 is 1/12. On
# random blocks of 64 channels, after 1 to 40 iterations with learning rates up to 0.15, on as few
# as 4 rows and without a regularizer, hard errors were at most 1.4 times those of the start or of
# rounding to nearest, whichever was larger; above 4 only with rates from 0.5.
LIMIT = 4.0


SMALLER_RATE = "Take a smaller learning rate"


class Diverged(UserError):
    """Learning that cannot go on, or that went astray.

    Attributes:
        reason: what was seen.
        advice: what to do about it.
        history: of the learning until then.
    """

    def __init__(self, reason: str, advice: str):
        super().__init__(f"{reason}. {advice}.")
        self.reason, self.advice = reason, advice
        self.history: list[dict[str, float]] = []

    def record(self) -> dict[str, Any]:
        """For the JSON of a result."""
        return {"reason": self.reason, "advice": self.advice}


def told(document: Mapping[str, Any]) -> str:
    """What was seen and what to do, by the JSON of a result that diverged."""
    record = document["diverged"]
    return f"{record['reason']}. {record['advice']} and run the same command again."


def kept_text(document: Mapping[str, Any]) -> str:
    """What a block or a tuned network kept, in words, by the JSON of its result."""
    kept: str = document["kept"]
    return f"{kept}, learning diverged" if document["diverged"] else kept


def check_error(error: float, start: float) -> None:
    """Compares errors on the rows that were learned from.

    Args:
        start: of what it started from, or of rounding to nearest if that is larger: GPTQ's weights
            fit few rows better than any rounding that has not settled yet.

    Raises:
        Diverged: the error is more than `LIMIT` times the start's, or no number.
    """
    if not error <= LIMIT * start:
        raise Diverged(
            f"Its error on the rows that it learned from is {error:.3g}, {error / start:.3g} times "
            "that without learning",
            SMALLER_RATE,
        )


def check_finite(errors: Iterable[float], weights: str, of: str) -> None:
    """Args:
        errors: of the output.
        weights, of: what was computed with, and whose output it is: for the message.

    Raises:
        Diverged: one of the errors is NaN or infinite.
    """
    if not all(map(math.isfinite, errors)):
        raise Diverged(
            f"With the weights of {weights} the output of {of} overflows",
            "Set model.dtype to float32 or bfloat16",
        )
