"""AdamW and a moving average of the weights, on one flat vector.

A small network has hundreds of small tensors, and an optimizer that visits each costs more than
its gradients. Here all parameters live end to end in ONE float32 vector; moments and average
have the same form, and a step is one fused element-wise kernel for all of them. The network sees
slices of that vector, rounded to the compute dtype once a step.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ditquant.artifacts import load_metadata, load_tensors, save_tensors
from ditquant.backend import compiled, mx

BETA1, BETA2, EPSILON = 0.9, 0.99, 1e-8
MAX_NORM = 1.0  # gradients are scaled down to this length
TRAINING = "ditquant.demo.training"
VECTORS = ("weights", "average", "moment1", "moment2")
EMA_WARMUP = 10  # the average starts short: decay (1 + t) / (10 + t) until that exceeds its own


@dataclass(frozen=True)
class Schedule:
    """Learning rate: a linear rise over `warmup` steps, then half a cosine down to zero."""

    peak: float
    warmup: int
    steps: int

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.peak * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


@dataclass(frozen=True)
class Layout:
    """Where each named parameter lies in the vector, and its shape."""

    shapes: dict[str, tuple[int, ...]]

    def flatten(self, params: Mapping[str, mx.array]) -> mx.array:
        return mx.concatenate([params[name].reshape(-1) for name in self.shapes])

    def unflatten(self, vector: mx.array) -> dict[str, mx.array]:
        params, start = {}, 0
        for name, shape in self.shapes.items():
            size = math.prod(shape)
            params[name] = vector[start : start + size].reshape(shape)
            start += size
        return params


@dataclass(frozen=True)
class State:
    """All that a run carries from step to step.

    Attributes:
        step: steps done.
        weights, average, moment1, moment2: float32 vectors of one length.
        losses: mean losses reported so far, as (step, loss).
    """

    step: int
    weights: mx.array
    average: mx.array
    moment1: mx.array
    moment2: mx.array
    losses: tuple[tuple[int, float], ...] = ()

    @staticmethod
    def start(vector: mx.array) -> State:
        zeros = mx.zeros_like(vector)
        return State(0, vector, vector, zeros, zeros)

    @property
    def arrays(self) -> dict[str, mx.array]:
        return {name: getattr(self, name) for name in VECTORS}

    def save(self, path: Path, identity: str) -> None:
        """Writes a checkpoint; `identity` says of which run it is."""
        metadata = {"step": str(self.step), "losses": self.losses, "run": identity}
        save_tensors(path, self.arrays, TRAINING, metadata)

    @staticmethod
    def load(path: Path, identity: str) -> State | None:
        """The state in a checkpoint; None if there is none, or one of another run."""
        metadata = load_metadata(path, TRAINING) if path.exists() else {}
        if metadata.get("run") != identity:
            return None
        losses = tuple((int(step), float(loss)) for step, loss in json.loads(metadata["losses"]))
        return State(step=int(metadata["step"]), losses=losses, **load_tensors(path, TRAINING))


@compiled
def _adamw(
    weights: mx.array,
    average: mx.array,
    moment1: mx.array,
    moment2: mx.array,
    gradient: mx.array,
    shrink: mx.array,
    rates: mx.array,
) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    rate, weight_decay, ema, correction1, correction2 = (rates[i] for i in range(5))
    gradient = gradient.astype(mx.float32) * shrink
    moment1 = BETA1 * moment1 + (1 - BETA1) * gradient
    moment2 = BETA2 * moment2 + (1 - BETA2) * gradient * gradient
    step = (moment1 * correction1) / (mx.sqrt(moment2 * correction2) + EPSILON)
    weights = weights - rate * (step + weight_decay * weights)
    average = ema * average + (1 - ema) * weights
    return weights, average, moment1, moment2


def update(state: State, gradient: mx.array, rate: float, weight_decay: float, ema: float) -> State:
    """One step of AdamW (Loshchilov & Hutter, arXiv 1711.05101) with a clipped gradient.

    Args:
        state: where the run is.
        gradient: of the mean loss, flat, any float dtype.
        rate: learning rate of this step.
        weight_decay: decoupled weight decay.
        ema: decay of the moving average of the weights.
    """
    step = state.step + 1
    length = mx.sqrt((gradient.astype(mx.float32) ** 2).sum())
    shrink = mx.minimum(1.0, MAX_NORM / (length + 1e-6))
    decay = min(ema, step / (EMA_WARMUP + step))
    rates = mx.array(
        [rate, weight_decay, decay, 1 / (1 - BETA1**step), 1 / (1 - BETA2**step)], mx.float32
    )
    moved = _adamw(*state.arrays.values(), gradient, shrink, rates)
    return replace(state, step=step, **dict(zip(VECTORS, moved, strict=True)))
