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

With a `Joint` the steps of simulated activation quantizers are learned together with the rounding
(TaQ-DiT, arXiv 2411.14172; `joint_steps`).

State is float32 whatever the model's dtype; float16's gradients are scaled (`loss_scale`). They are
taken by automatic differentiation down to the weights (`block_gradients`), and from there to alpha
by the closed forms in `rounding`. What an iteration does to each weight is compiled
(`rounding_kernels`); the block's own passes stay uncompiled, because compiling them as one graph
takes minutes on CUDA. The host runs one backward pass ahead of the device, since what it has
ordered occupies memory, and reads nothing back but for the history.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..backend import device_arrays, mx
from . import learning
from .block_gradients import cheap_gradients
from .joint_steps import Joint, moved_steps, quantizing
from .learning_state import Resume, State, new_state
from .loss_scale import LossScale
from .lsq import dropped
from .reconstruct import BlockProblem, dealt_rows, stream_errors, weights_restored
from .rounding import bits_of, hard_codes, is_binary, start_alpha
from .rounding_kernels import advance, advance_where, softening, stored_line

_BETA_START, _BETA_END = 20, 2
_HISTORY_POINTS = 50


@dataclass(frozen=True)
class Options:
    """Of a recipe with AdaRound.

    Attributes:
        iterations: optimisation steps.
        batch_size: rows a step; fewer if the training rows are fewer.
        learning_rate: of Adam on alpha.
        regularizer: lambda, in units of the block's RTN error on the training rows.
        warmup: share of the iterations without regulariser.
        rows_at_once: rows of one backward pass; the gradients of a batch are added up. Bounds the
            memory; None takes the whole batch.
        input_mix: share of the elements of the entering streams that are full-precision ones in an
            iteration, the others coming from the quantized prefix (QDrop, TaQ-DiT).
    """

    iterations: int
    batch_size: int
    learning_rate: float
    regularizer: float
    warmup: float
    rows_at_once: int | None = None
    input_mix: float = 0.0


@dataclass(frozen=True)
class Learned:
    """What a learning found.

    Attributes:
        codes: hard codes of each linear, (outputs, inputs) float32 integers.
        steps: of the activation quantizers; none without `Joint`.
        state: the final one.
        loss_scale: `LossScale.finished`.
    """

    codes: list[mx.array]
    steps: list[mx.array]
    state: State
    loss_scale: dict[str, float] | None


def batch_rows(problem: BlockProblem, size: int, seed: int, iteration: int) -> np.ndarray:
    """Training rows of one step (`reconstruct.dealt_rows`)."""
    block = zlib.crc32(problem.block.name.encode())
    return dealt_rows(problem.train, size, [seed, block], iteration)


def annealed_beta(progress: float) -> int:
    """The even number nearest to what falls linearly from 20 to 2 as `progress` goes to 1."""
    return 2 * round((_BETA_START + (_BETA_END - _BETA_START) * progress) / 2)


class Learner:
    """What stays the same from iteration to iteration, and one iteration; see `learn`."""

    def __init__(
        self,
        problem: BlockProblem,
        starts: Sequence[mx.array],
        options: Options,
        rtn_error: float,
        seed: int,
        row_weights: mx.array | None = None,
        joint: Joint | None = None,
    ):
        self._problem, self._options, self._seed = problem, options, seed
        self._starts, self._row_weights, self._joint = starts, row_weights, joint
        self._count = sum(weight.size for weight in problem.weights)
        self._penalty = options.regularizer * rtn_error / self._count
        lines = [
            stored_line(one, scales) for one, scales in zip(starts, problem.scales, strict=True)
        ]
        self._low, self._rise = [low for low, _ in lines], [rise for _, rise in lines]
        mx.eval(self._low, self._rise)
        dtype = problem.data.inputs[0].dtype
        self._soften = softening(dtype)
        batch = min(options.batch_size, len(problem.train))
        self._at_once = min(options.rows_at_once or batch, batch)
        outputs = max(target[0].size for target in problem.data.targets) * self._at_once
        self.loss_scale = LossScale(dtype, outputs, options.iterations)
        self._slopes = mx.value_and_grad(self._scaled_error, argnums=(0, 1))
        self._ordered: mx.array | None = None

    def start(self) -> State:
        """Its values are the alphas of the linears, and then the steps of the quantizers."""
        alphas = [start_alpha(steps) for steps in self._starts]
        steps = [one.step for one in self._joint.quantizers.values()] if self._joint else []
        return new_state([*alphas, *steps], self.loss_scale.start())

    def _scaled_error(
        self,
        weights: list[mx.array],
        steps: list[mx.array],
        scaling: mx.array,
        rows: mx.array,
        key: mx.array,
    ) -> mx.array:
        see = quantizing(self._joint, steps, key) if self._joint else None
        weighting = None if self._row_weights is None else self._row_weights[rows]
        inputs = self._entering(rows, key)
        errors = stream_errors(self._problem, weights, rows, inputs, weighting, see)
        return self.loss_scale.scaled(sum(errors) / len(errors), scaling)

    def _entering(self, rows: mx.array, key: mx.array) -> list[mx.array]:
        data, share = self._problem.data, self._options.input_mix
        streams = [stream[rows] for stream in data.entering]
        if data.prefix is None or share <= 0:
            return streams
        keys = mx.random.split(key, len(streams))
        return [
            dropped(own[rows], stream, share, one)
            for own, stream, one in zip(data.inputs, streams, keys, strict=True)
        ]

    def _batch_slopes(
        self, weights: list[mx.array], state: State, rows: np.ndarray
    ) -> tuple[mx.array, list[mx.array], list[mx.array]]:
        """Sums over the parts of a batch, scaled: error, slopes of the weights, of the steps."""
        quantizer_steps = state.values[len(weights) :]
        key = mx.random.key((self._seed << 24) + state.iteration)
        total: tuple[mx.array, list[mx.array], list[mx.array]] | None = None
        for start in range(0, len(rows) - self._at_once + 1, self._at_once):
            part = mx.array(rows[start : start + self._at_once])
            error, (slopes, steps) = self._slopes(
                weights, quantizer_steps, state.scaling, part, mx.random.split(key, start + 2)[-1]
            )
            if total is None:
                total = error, slopes, steps
            else:
                total = (
                    total[0] + error,
                    [one + other for one, other in zip(total[1], slopes, strict=True)],
                    [one + other for one, other in zip(total[2], steps, strict=True)],
                )
            if len(rows) > self._at_once:
                self._order(total, total[1][-1])
        assert total is not None
        return total

    def _order(self, arrays: Any, last: mx.array) -> None:
        """Has the device compute `arrays`, of which `last` comes last.

        Waits for what was ordered before: the device has work, but never more than two orders.
        """
        end = last.reshape(-1)[:1] + 0
        mx.async_eval(arrays, end)
        if self._ordered is not None:
            mx.eval(self._ordered)
        self._ordered = end

    def iterate(self, state: State) -> None:
        """One step: advances `state` and, now and then, its history."""
        options = self._options
        warmup = options.warmup * options.iterations
        progress = (state.iteration - warmup) / (options.iterations - warmup)
        rows = batch_rows(self._problem, options.batch_size, self._seed, state.iteration)
        alphas = len(self._rise)
        weights = [
            self._soften(*three)
            for three in zip(state.values[:alphas], self._low, self._rise, strict=True)
        ]
        error, slopes, step_slopes = self._batch_slopes(weights, state, rows)
        parts = len(rows) // self._at_once
        state.scaling, step = self.loss_scale.judge(
            state.scaling, error, [*slopes, *step_slopes], parts
        )
        rate, penalty, *bits = device_arrays(
            [
                options.learning_rate,
                self._penalty if progress >= 0 else 0.0,
                *bits_of(annealed_beta(max(progress, 0.0)) - 1),
            ]
        )
        before = list(zip(state.values, state.means, state.squares, strict=True))
        move = advance if step.is_taken is None else partial(advance_where, step.is_taken)
        moved = [
            move(*one, (slope, rise, step.unscale, penalty, bits), (rate, *step.corrections))
            for one, slope, rise in zip(before[:alphas], slopes, self._rise, strict=True)
        ]
        if self._joint is not None:
            turn = math.pi * state.iteration / options.iterations
            own_rate = mx.array(self._joint.learning_rate * (1 + math.cos(turn)) / 2)
            moved += moved_steps(self._joint, before[alphas:], step_slopes, own_rate, step)
        state.values, state.means, state.squares = map(list, zip(*moved, strict=True))
        state.iteration += 1
        self._order((error, state.arrays()), state.values[alphas - 1])
        self._note(state, parts)

    def _note(self, state: State, parts: int) -> None:
        """Adds to the history now and then."""
        total, done = self._options.iterations, state.iteration
        if done % max(1, total // _HISTORY_POINTS) and done != total:
            return
        binary = [mx.sum(is_binary(alpha)) for alpha in state.values[: len(self._rise)]]
        mx.eval(binary)
        scaling = self.loss_scale.read(state.scaling)
        if scaling.taken:
            share = sum(count.item() for count in binary) / self._count
            point = {"iteration": done, "error": scaling.error / parts, "binary_share": share}
            state.history.append(point | self.loss_scale.noted(scaling, done))


def learn(
    problem: BlockProblem,
    starts: Sequence[mx.array],
    options: Options,
    rtn_error: float,
    seed: int,
    row_weights: mx.array | None = None,
    joint: Joint | None = None,
    resume: Resume | None = None,
) -> Learned:
    """Learns the rounding of a block's weights.

    Args:
        starts: W / scale + zero of each linear, or what GPTQ made of it (`gptq.gptq_steps`); the
            codes below and above are on offer.
        rtn_error: of the block on its training rows (`reconstruct.block_error`).
        seed: of the batches.
        row_weights: (rows,) how much each row counts in the error; None: all the same.
        joint: activation quantizers that are learned too.
        resume: see `learning.run`.

    Raises:
        Diverged: see `LossScale`.
    """
    learner = Learner(problem, starts, options, rtn_error, seed, row_weights, joint)
    label = f"rounding of {problem.block.name}"
    with weights_restored(problem), cheap_gradients(problem.block):
        state, loss_scale = learning.run(learner, options.iterations, label, resume)
    alphas, steps = state.values[: len(starts)], state.values[len(starts) :]
    codes = [
        hard_codes(start, alpha, 2**scales.bits)
        for start, alpha, scales in zip(starts, alphas, problem.scales, strict=True)
    ]
    mx.eval(codes)
    return Learned(codes, steps, state, loss_scale)
