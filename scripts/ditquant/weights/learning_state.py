"""What a learning has reached, and how an interrupted one finds it again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..artifacts import load_metadata, load_tensors, save_tensors
from ..backend import mx
from ..errors import UserError

STATE = "ditquant.learning_state"
_ARRAYS = ("values", "means", "squares")


def resume_key(sources: Sequence[str | Path], settings: Mapping[str, Any]) -> str:
    """Tells one job from another: an interrupted job's state is used by the same job alone.

    Args:
        sources: files that the job reads; they count by name, size and time.
    """
    status = [
        (str(path), Path(path).stat().st_size, Path(path).stat().st_mtime_ns) for path in sources
    ]
    text = json.dumps([settings, status], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass
class State:
    """Where a learning by Adam stands.

    Attributes:
        values: what is learned, float32.
        means, squares: Adam's moments of their gradients.
        scaling: where the loss scale stands (`loss_scale.LossScale`).
        iteration: steps tried.
        history: {"iteration", "error", ...} now and then.
        pending: errors since the last point of the history, where they are collected.
    """

    values: list[mx.array]
    means: list[mx.array]
    squares: list[mx.array]
    scaling: mx.array
    iteration: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    pending: list[float] = field(default_factory=list)

    def arrays(self) -> list[mx.array]:
        return [*self.values, *self.means, *self.squares, self.scaling]


def new_state(values: list[mx.array], scaling: mx.array) -> State:
    """The state before the first iteration."""
    means, squares = ([mx.zeros_like(one) for one in values] for _ in range(2))
    return State(values, means, squares, scaling)


def save_state(path: str | Path, state: State, key: str) -> None:
    """Writes the state for `load_state`; `key` names the job that may continue from it."""
    tensors = {
        f"{kind}.{index:04d}": array
        for kind in _ARRAYS
        for index, array in enumerate(getattr(state, kind))
    }
    record = {
        "key": key,
        "iteration": state.iteration,
        "history": state.history,
        "pending": state.pending,
    }
    save_tensors(path, {**tensors, "scaling": state.scaling}, STATE, record)


def load_state(path: str | Path, key: str) -> State | None:
    """The state that an interrupted job with the same `key` left, or None."""
    if not Path(path).is_file():
        return None
    try:
        metadata, tensors = load_metadata(path, STATE), dict(load_tensors(path, STATE))
    except UserError:
        return None
    if metadata.get("key") != key:
        return None
    lists = {
        kind: [tensors[name] for name in sorted(tensors) if name.startswith(f"{kind}.")]
        for kind in _ARRAYS
    }
    state = State(
        **lists,
        scaling=tensors["scaling"],
        iteration=int(metadata["iteration"]),
        history=json.loads(metadata["history"]),
        pending=json.loads(metadata["pending"]),
    )
    mx.eval(state.arrays())
    return state
