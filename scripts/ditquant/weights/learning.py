"""The loop of a learning: iterations, saves now and then, and what it came to."""

from __future__ import annotations

from typing import Protocol

from ..progress import ticking
from .divergence import history_kept
from .learning_state import Resume, State
from .loss_scale import LossScale


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
    with history_kept(state.history), ticking(label, iterations, state.iteration) as tick:
        while state.iteration < iterations:
            learner.iterate(state)
            if resume and state.iteration < iterations and resume.is_due():
                learner.loss_scale.check(state.scaling, state.values)
                resume.save(state)
            tick()
        return state, learner.loss_scale.finished(state.scaling, state.values)
