"""What a learning has reached, and how an interrupted one finds it again."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..artifacts import load_metadata, load_tensors, save_tensors
from ..backend import mx
from ..errors import UserError
from ..files import remove
from ..seals import recorded_digest

STATE = "ditquant.learning_state"
# A state of SD3-medium's block has 0.7 GB; an iteration on a GPU takes 12 ms.
SAVE_SECONDS = 60.0
_LOG = logging.getLogger("ditquant")
_ARRAYS = ("values", "means", "squares")


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


def resume_key(files: Mapping[str, Sequence[str | Path]], params: Mapping[str, Any]) -> str:
    """Names a job by all that it reads: an interrupted job's state is used by the same job alone.

    A job reads its files and parameters out of the two arguments, so none of them can be forgotten.

    Args:
        files: artifacts by their name in the job; they count by content, wherever they lie.
        params: anything JSON can hold, the model's identity among them.
    """
    digests = {name: [recorded_digest(path) for path in paths] for name, paths in files.items()}
    text = json.dumps([digests, params], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Resume:
    """The file from which an interrupted learning goes on.

    Args:
        path: it is there while the job is at work.
        key: names the job (`resume_key`).
        clock: seconds that only grow.
    """

    def __init__(self, path: Path, key: str, clock: Callable[[], float] = time.monotonic):
        self._path, self._key, self._clock = path, key, clock
        self._saved = clock()

    def load(self) -> State | None:
        """What an interrupted run of the same job left, or None."""
        if not self._path.is_file():
            return None
        try:
            state = self._read()
        except UserError as error:
            _LOG.warning("What an interrupted run left is not used: %s", error)
            return None
        if state is None:
            _LOG.info("An interrupted run had other inputs or options: starting anew")
        else:
            _LOG.info("Going on behind iteration %d of an interrupted run", state.iteration)
        return state

    def _read(self) -> State | None:
        metadata = load_metadata(self._path, STATE)
        if metadata.get("key") != self._key:
            return None
        tensors = load_tensors(self._path, STATE)
        lists = {
            kind: [tensors[name] for name in sorted(tensors) if name.startswith(f"{kind}.")]
            for kind in _ARRAYS
        }
        return State(
            **lists,
            scaling=tensors["scaling"],
            iteration=int(metadata["iteration"]),
            history=json.loads(metadata["history"]),
            pending=json.loads(metadata["pending"]),
        )

    def is_due(self) -> bool:
        """True once `SAVE_SECONDS` have passed since the last save or the start."""
        return self._clock() - self._saved >= SAVE_SECONDS

    def save(self, state: State) -> None:
        tensors = {
            f"{kind}.{index:04d}": array
            for kind in _ARRAYS
            for index, array in enumerate(getattr(state, kind))
        }
        record = {
            "key": self._key,
            "iteration": state.iteration,
            # As text, which keeps the order of keys: the result shall have the same bytes.
            "history": json.dumps(state.history),
            "pending": state.pending,
        }
        save_tensors(self._path, {**tensors, "scaling": state.scaling}, STATE, record)
        self._saved = self._clock()

    def discard(self) -> None:
        """Removes the file and what killed writes of it left, when the job is done."""
        remove(self._path)
