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

_ARRAYS = ("alphas", "means", "squares", "steps", "step_means", "step_squares")
_TUNING_ARRAYS = ("offsets", "means", "squares")


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
    """Where the learning of a block's rounding stands.

    Attributes:
        alphas: rounding variables, one (outputs, inputs) float32 a linear of the block.
        means, squares: Adam's moments of their gradients.
        steps: learned steps of activation quantizers, float32 scalars; empty without any.
        step_means, step_squares: Adam's moments of theirs.
        iteration: steps done.
        history: {"iteration", "error", "binary_share"} now and then.
    """

    alphas: list[mx.array]
    means: list[mx.array]
    squares: list[mx.array]
    steps: list[mx.array] = field(default_factory=list)
    step_means: list[mx.array] = field(default_factory=list)
    step_squares: list[mx.array] = field(default_factory=list)
    iteration: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def arrays(self) -> list[list[mx.array]]:
        return [getattr(self, kind) for kind in _ARRAYS]


def new_state(alphas: list[mx.array], steps: list[mx.array]) -> State:
    """The state before the first iteration."""
    zeros = [[mx.zeros_like(one) for one in arrays] for arrays in (alphas, alphas, steps, steps)]
    return State(alphas, zeros[0], zeros[1], steps, zeros[2], zeros[3])


@dataclass
class TuningState:
    """Where the tuning of a network's grids stands.

    Attributes:
        offsets: of scale and of value, float32, linear by linear.
        means, squares: Adam's moments of their gradients.
        iteration: steps done.
        history: {"iteration", "error"} now and then, sometimes with "held_out".
        pending: errors of the batches since the last point of the history.
    """

    offsets: list[mx.array]
    means: list[mx.array]
    squares: list[mx.array]
    iteration: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    pending: list[float] = field(default_factory=list)

    def arrays(self) -> list[list[mx.array]]:
        return [getattr(self, kind) for kind in _TUNING_ARRAYS]


def new_tuning(offsets: list[mx.array]) -> TuningState:
    """The state before the first iteration."""
    means, squares = ([mx.zeros_like(one) for one in offsets] for _ in range(2))
    return TuningState(offsets, means, squares)


def _save(
    path: str | Path,
    kinds: Sequence[str],
    arrays: Sequence[Sequence[mx.array]],
    record: Mapping[str, Any],
) -> None:
    tensors = {
        f"{kind}.{index:04d}": array
        for kind, several in zip(kinds, arrays, strict=True)
        for index, array in enumerate(several)
    }
    save_tensors(path, tensors, record)


def _load(
    path: str | Path, kinds: Sequence[str], key: str
) -> tuple[dict[str, list[mx.array]], dict[str, str]] | None:
    """Arrays by kind and the record that an interrupted job with the same `key` left, or None."""
    if not Path(path).is_file():
        return None
    try:
        metadata, tensors = load_metadata(path), load_tensors(path)
    except UserError:
        return None
    if metadata.get("key") != key:
        return None
    lists = {
        kind: [tensors[name] for name in sorted(tensors) if name.startswith(f"{kind}.")]
        for kind in kinds
    }
    mx.eval(lists)
    return lists, metadata


def save_state(path: str | Path, state: State, key: str) -> None:
    """Writes the state for `load_state`; `key` names the job that may continue from it."""
    record = {"key": key, "iteration": state.iteration, "history": state.history}
    _save(path, _ARRAYS, state.arrays(), record)


def load_state(path: str | Path, key: str) -> State | None:
    """The state that an interrupted job with the same `key` left, or None."""
    found = _load(path, _ARRAYS, key)
    if found is None:
        return None
    lists, record = found
    return State(**lists, iteration=int(record["iteration"]), history=json.loads(record["history"]))


def save_tuning(path: str | Path, state: TuningState, key: str) -> None:
    """Writes the state for `load_tuning`; `key` names the job that may continue from it."""
    record = {
        "key": key,
        "iteration": state.iteration,
        "history": state.history,
        "pending": state.pending,
    }
    _save(path, _TUNING_ARRAYS, state.arrays(), record)


def load_tuning(path: str | Path, key: str) -> TuningState | None:
    """The state that an interrupted job with the same `key` left, or None."""
    found = _load(path, _TUNING_ARRAYS, key)
    if found is None:
        return None
    lists, record = found
    return TuningState(
        **lists,
        iteration=int(record["iteration"]),
        history=json.loads(record["history"]),
        pending=json.loads(record["pending"]),
    )
