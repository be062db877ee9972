"""AdaRound by block reconstruction: learns the rounding of all weights of a block together.

Loss = block error (`reconstruct`) + lambda * mean over weights of the rounding regulariser, with
AdaRound's h(alpha) and annealed beta (arXiv 2004.10568, eq. 21-25) on BRECQ's blocks
(arXiv 2102.05426). Two things differ from the published recipe, because runs here are short:

* The block error is in units of the update energy and the regulariser is a mean over weights;
  lambda is `regularizer` times the block's own RTN error. So one setting fits every block: the
  regulariser outweighs the error by the same factor everywhere, and nearly all h end at 0 or 1.
  What is not binary at the end is thrown away by hard rounding.
* Adam moves alpha by the learning rate at most, so an iteration count of hundreds needs a rate of
  0.02 to 0.05, not 0.001.

State is float32 whatever the model's dtype. The gradient is taken by automatic differentiation
down to the weights, and from there to alpha by the closed forms in `rounding`: h is computed once
an iteration, which is what costs most on a CPU.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .artifacts import load_metadata, load_tensors, save_tensors
from .backend import compiled, mx
from .errors import UserError
from .grids import Scales, steps_of
from .progress import ticking
from .reconstruct import BlockProblem, stream_errors, weights_restored
from .rounding import (
    hard_codes,
    is_binary,
    rectified_sigmoid,
    rectified_sigmoid_slope,
    regularizer_slope,
    soft_codes,
    soft_codes_slope,
    start_alpha,
)

_BETA_START, _BETA_END = 20, 2
# The usual 0.9 for the first moment carries alpha past the point where it should settle between 0
# and 1: on one block of the demo model 0.5 left 0.54 of RTN's error on unseen rows, 0.9 left 0.62.
_ADAM_DECAY = (0.5, 0.999)
_ADAM_EPSILON = 1e-12
_HISTORY_POINTS = 50
_SAVES = 20


@dataclass(frozen=True)
class Options:
    """Of a recipe with AdaRound.

    Attributes:
        iterations: optimisation steps.
        batch_size: rows a step; fewer if the training rows are fewer.
        learning_rate: of Adam on alpha.
        regularizer: lambda, in units of the block's RTN error on the training rows.
        warmup: share of the iterations without regulariser.
    """

    iterations: int
    batch_size: int
    learning_rate: float
    regularizer: float
    warmup: float


@dataclass
class State:
    """Where the learning stands; all lists follow the block's linears.

    Attributes:
        alphas: rounding variables (outputs, inputs) float32.
        means, squares: Adam's moments of their gradients.
        iteration: steps done.
        history: {"iteration", "error", "binary_share"} now and then.
    """

    alphas: list[mx.array]
    means: list[mx.array]
    squares: list[mx.array]
    iteration: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


def save_state(path: str | Path, state: State, key: str) -> None:
    """Writes the state for `load_state`; `key` names the job that may continue from it."""
    tensors = {
        f"{kind}.{index:03d}": array
        for kind in ("alphas", "means", "squares")
        for index, array in enumerate(getattr(state, kind))
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
        for kind in ("alphas", "means", "squares")
    }
    mx.eval(lists)
    return State(
        **lists,
        iteration=int(metadata["iteration"]),
        history=json.loads(metadata["history"]),
    )


def batch_rows(problem: BlockProblem, size: int, seed: int, iteration: int) -> np.ndarray:
    """Training rows of one step; the same whenever asked for.

    The rows are shuffled once an epoch and dealt out, so that Adam's first moment averages over
    most of them: batches drawn independently leave it three times the noise.
    """
    size = min(size, len(problem.train))
    epoch, place = divmod(iteration, len(problem.train) // size)
    block = zlib.crc32(problem.block.name.encode())
    order = np.random.default_rng([seed, block, epoch]).permutation(problem.train)
    return order[place * size : (place + 1) * size]


def annealed_beta(progress: float) -> int:
    """The even number nearest to what falls linearly from 20 to 2 as `progress` goes to 1."""
    return 2 * round((_BETA_START + (_BETA_END - _BETA_START) * progress) / 2)


def _soften(levels: int) -> Callable[..., tuple[mx.array, mx.array]]:
    """(alpha, steps, scale, zero) -> h and the soft weight, in one pass over the weights."""

    def soften(
        alpha: mx.array, steps: mx.array, scale: mx.array, zero: mx.array
    ) -> tuple[mx.array, mx.array]:
        h = rectified_sigmoid(alpha)
        return h, (soft_codes(steps, h, levels) - zero) * scale

    return compiled(soften)


def _advance(
    alpha: mx.array,
    mean: mx.array,
    square: mx.array,
    weight_slope: mx.array,
    per_h: mx.array,
    penalty_slope: mx.array,
    h: mx.array,
    rate: mx.array,
    mean_correction: mx.array,
    square_correction: mx.array,
) -> tuple[mx.array, mx.array, mx.array]:
    """One Adam step: alpha and its moments afterwards.

    Args:
        weight_slope, per_h: d error / d soft weight, and d soft weight / dh.
        penalty_slope: lambda d mean(regulariser) / dh.
        rate, mean_correction, square_correction: the learning rate and 1 / (1 - decay^t); scalars
            as arrays, since a number would recompile.
    """
    keep_mean, keep_square = _ADAM_DECAY
    slope = (weight_slope * per_h + penalty_slope) * rectified_sigmoid_slope(h)
    mean = keep_mean * mean + (1 - keep_mean) * slope
    square = keep_square * square + (1 - keep_square) * slope * slope
    root = mx.sqrt(square * square_correction) + _ADAM_EPSILON
    return alpha - rate * mean * mean_correction / root, mean, square


class _Learner:
    """What stays the same from iteration to iteration, and one iteration.

    Scales and zero points are spread to the weights' shape: a broadcast inside a fused kernel
    would keep it from being vectorised on the CPU.
    """

    def __init__(self, problem: BlockProblem, options: Options, rtn_error: float, seed: int):
        self._problem, self._options, self._seed = problem, options, seed
        self._strength = options.regularizer * rtn_error
        self._count = sum(weight.size for weight in problem.weights)
        pairs = list(zip(problem.weights, problem.scales, strict=True))
        self.steps = [steps_of(weight, scales) for weight, scales in pairs]
        self._scale = [_spread(scales.scales, scales) for scales in problem.scales]
        self._zero = [_spread(scales.zeros, scales) for scales in problem.scales]
        self._per_h = [
            scale * soft_codes_slope(steps, problem.levels)
            for scale, steps in zip(self._scale, self.steps, strict=True)
        ]
        mx.eval(self.steps, self._scale, self._zero, self._per_h)
        self._soften, self._advance = _soften(problem.levels), compiled(_advance)
        self._loss_scale = _loss_scale(problem, options.batch_size)
        self._slopes = mx.value_and_grad(self._scaled_error)

    def start(self) -> State:
        alphas = [start_alpha(steps) for steps in self.steps]
        return State(
            alphas,
            [mx.zeros_like(alpha) for alpha in alphas],
            [mx.zeros_like(alpha) for alpha in alphas],
        )

    def _scaled_error(self, weights: list[mx.array], rows: mx.array) -> mx.array:
        errors = stream_errors(self._problem, weights, rows)
        return self._loss_scale * sum(errors) / len(errors)

    def _penalty_slope(self, h: mx.array, progress: float) -> mx.array:
        if progress < 0:
            return mx.zeros_like(h)
        return (self._strength / self._count) * regularizer_slope(h, annealed_beta(progress))

    def iterate(self, state: State) -> None:
        """One step: advances `state` and, now and then, its history."""
        options = self._options
        warmup = options.warmup * options.iterations
        progress = (state.iteration - warmup) / (options.iterations - warmup)
        chosen = batch_rows(self._problem, options.batch_size, self._seed, state.iteration)
        arrays = zip(state.alphas, self.steps, self._scale, self._zero, strict=True)
        soft = [self._soften(*four) for four in arrays]
        error, slopes = self._slopes([weight for _, weight in soft], mx.array(chosen))
        done = state.iteration + 1
        numbers = [mx.array(options.learning_rate, dtype=mx.float32)]
        numbers += [mx.array(1 / (1 - keep**done), dtype=mx.float32) for keep in _ADAM_DECAY]
        updated = [
            self._advance(
                state.alphas[index],
                state.means[index],
                state.squares[index],
                slopes[index] / self._loss_scale,
                self._per_h[index],
                self._penalty_slope(h, progress),
                h,
                *numbers,
            )
            for index, (h, _) in enumerate(soft)
        ]
        mx.eval(error, updated)
        state.alphas, state.means, state.squares = map(list, zip(*updated, strict=True))
        state.iteration = done
        if done % max(1, options.iterations // _HISTORY_POINTS) == 0 or done == options.iterations:
            binary = sum(mx.sum(is_binary(rectified_sigmoid(a))).item() for a in state.alphas)
            point = {"iteration": done, "error": error.item() / self._loss_scale}
            state.history.append({**point, "binary_share": binary / self._count})


def _spread(values: mx.array, scales: Scales) -> mx.array:
    """(outputs, groups) -> (outputs, inputs) float32."""
    return mx.repeat(values.astype(mx.float32), scales.group_size, axis=1)


def _loss_scale(problem: BlockProblem, batch: int) -> float:
    """What keeps float16 gradients of a mean over a million outputs from underflowing."""
    if problem.data.inputs[0].dtype != mx.float16:
        return 1.0
    elements = max(target[0].size for target in problem.data.targets) * batch
    return 2.0 ** math.floor(math.log2(elements))


def learn(
    problem: BlockProblem,
    options: Options,
    rtn_error: float,
    seed: int,
    resume: Path | None = None,
    key: str = "",
) -> tuple[list[mx.array], State]:
    """Learns the rounding of a block's weights.

    Args:
        rtn_error: of the block on its training rows (`reconstruct.block_error`).
        seed: of the batches.
        resume: where to keep the state now and then; a run that finds it there under the same
            `key` goes on from it and ends with the same bits as one that was never interrupted.

    Returns:
        Hard codes of each linear, (outputs, inputs) float32 integers, and the final state.
    """
    learner = _Learner(problem, options, rtn_error, seed)
    state = (load_state(resume, key) if resume else None) or learner.start()
    total = options.iterations
    with (
        weights_restored(problem),
        ticking(f"rounding of {problem.block.name}", total, state.iteration) as tick,
    ):
        while state.iteration < total:
            learner.iterate(state)
            if resume and state.iteration % max(1, total // _SAVES) == 0:
                save_state(resume, state, key)
            tick()
    codes = [
        hard_codes(steps, alpha, problem.levels)
        for steps, alpha in zip(learner.steps, state.alphas, strict=True)
    ]
    mx.eval(codes)
    return codes, state
