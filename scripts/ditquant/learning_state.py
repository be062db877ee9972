"""What a learning of rounding has reached, and how an interrupted one finds it again."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from .artifacts import load_metadata, load_tensors, save_tensors
from .backend import mx
from .errors import UserError

_ARRAYS = ("alphas", "means", "squares", "steps", "step_means", "step_squares")


@dataclass
class State:
    """Where the learning stands.

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


def save_state(path: str | Path, state: State, key: str) -> None:
    """Writes the state for `load_state`; `key` names the job that may continue from it."""
    tensors = {
        f"{kind}.{index:03d}": array
        for kind, arrays in zip(_ARRAYS, state.arrays(), strict=True)
        for index, array in enumerate(arrays)
    }
    save_tensors(
        path, tensors, {"key": key, "iteration": state.iteration, "history": state.history}
    )


def load_state(path: str | Path, key: str) -> State | None:
    """The state that an interrupted job with the same `key` left, or None."""
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
        for kind in _ARRAYS
    }
    mx.eval(lists)
    return State(
        **lists,
        iteration=int(metadata["iteration"]),
        history=json.loads(metadata["history"]),
    )
