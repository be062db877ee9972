"""Reports NaN and infinite values where they first occur, in one kind of message."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .backend import are_finite, mx
from .errors import UserError

ADVICE = (
    "If model.dtype is float16, which ends at 65504, set it to bfloat16 or float32; else the "
    "checkpoint may be damaged: get it again."
)


def not_finite(what: str, where: str) -> UserError:
    """The error for values that are NaN or infinite; see `check_finite`."""
    return UserError(f"NaN or infinity in {what} {where}. {ADVICE}")


def check_finite(values: Mapping[str, mx.array | np.ndarray], where: str) -> None:
    """Evaluates arrays and refuses them if they hold NaN or infinity.

    The device is waited for once, as by `mx.eval` alone.

    Args:
        values: what they are in the message -> the values, in the order in which they arise.
        where: completes the sentence: "at step 3 of 50".

    Raises:
        UserError: what is not finite, where, and what to do.
    """
    on_device = [array for array in values.values() if isinstance(array, mx.array)]
    found = iter(are_finite(on_device))
    for what, array in values.items():
        is_fine = next(found) if isinstance(array, mx.array) else np.isfinite(array).all()
        if not is_fine:
            raise not_finite(what, where)
