"""Learning by Adam: the loop, its state, and how an interrupted loop continues."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..artifacts import load_metadata, load_tensors, save_tensors
from ..backend import mx
from ..errors import UserError
from ..files import remove
from ..progress import ticking
from ..seals import recorded_digest
from .divergence import Diverged
from .loss_scale import LossScale, Moved

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

    @classmethod
    def before(cls, values: list[mx.array], scaling: mx.array) -> State:
        """The state before the first iteration."""
        means, squares = ([mx.zeros_like(one) for one in values] for _ in range(2))
        return cls(values, means, squares, scaling)

    def arrays(self) -> list[mx.array]:
        return [*self.values, *self.means, *self.squares, self.scaling]

    def moments(self) -> list[Moved]:
        """Each value with its moments."""
        return list(zip(self.values, self.means, self.squares, strict=True))

    def advance(self, moved: Iterable[Moved]) -> None:
        """Takes the values and moments after a step."""
        self.values, self.means, self.squares = map(list, zip(*moved, strict=True))
        self.iteration += 1

    def cosine(self, rate: float, iterations: int) -> mx.array:
        """A learning rate that falls to 0 over all iterations as a cosine does."""
        return mx.array(rate * (1 + math.cos(math.pi * self.iteration / iterations)) / 2)


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


class Learner(Protocol):
    """What is learned, step by step."""

    loss_scale: LossScale

    def start(self) -> State: ...

    def iterate(self, state: State) -> None: ...


def run(
    learner: Learner, iterations: int, label: str, resume: Resume | None
) -> tuple[State, dict[str, float] | None]:
    """Iterates to the end.

    Args:
        label: of the progress.
        resume: where to keep the state; a run that finds it there goes on from it and ends with the
            same bits as one that was never interrupted.

    Returns:
        The final state, and `LossScale.finished`.

    Raises:
        Diverged: see `LossScale`.
    """
    state = (resume.load() if resume else None) or learner.start()
    try:
        with ticking(label, iterations, state.iteration) as tick:
            while state.iteration < iterations:
                learner.iterate(state)
                if resume and state.iteration < iterations and resume.is_due():
                    learner.loss_scale.read(state.scaling, state.values)
                    resume.save(state)
                tick()
        return state, learner.loss_scale.finished(state.scaling, state.values)
    except Diverged as error:
        error.history = state.history
        raise
