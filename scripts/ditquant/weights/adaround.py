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

With a `Joint` the step sizes of simulated activation quantizers are learned together with the
rounding (TaQ-DiT, arXiv 2411.14172; `lsq`).

State is float32 whatever the model's dtype; float16's gradients are scaled (`loss_scale`). They are
taken by automatic differentiation down to the weights (`block_gradients`), and from there to alpha
by the closed forms in `rounding`. What an iteration does to each weight is compiled
(`rounding`); the block's own passes stay uncompiled, because compiling them as one graph
takes minutes on CUDA. The host runs one backward pass ahead of the device, since what it has
ordered occupies memory, and reads nothing back but for the history.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..backend import device_arrays, mx
from ..planning.recipes import Learned
from . import learning
from .block_gradients import cheap_gradients
from .learning import Resume, State
from .loss_scale import LossScale
from .lsq import Joint, dropped
from .reconstruct import BlockProblem, dealt_rows, stream_errors, weights_restored
from .rounding import (
    advance,
    advance_where,
    bits_of,
    hard_codes,
    is_binary,
    softening,
    start_alpha,
    stored_line,
)

_BETA_START, _BETA_END = 20, 2
_HISTORY_POINTS = 50


# Share of the elements of the entering streams that are full-precision ones with `inputs: mixed`,
# the others coming from the quantized prefix (QDrop, TaQ-DiT).
_MIXED = 0.5


@dataclass(frozen=True)
class LearnedCodes:
    """What a learning found.

    Attributes:
        codes: hard codes of each linear, (outputs, inputs) float32 integers.
        step_sizes: of the activation quantizers; none without `Joint`.
        state: the final one.
        loss_scale: `LossScale.finished`.
    """

    codes: list[mx.array]
    step_sizes: list[mx.array]
    state: State
    loss_scale: dict[str, float] | None


def batch_rows(problem: BlockProblem, size: int, seed: int, iteration: int) -> np.ndarray:
    """Training rows of one step (`reconstruct.dealt_rows`)."""
    block = zlib.crc32(problem.block.name.encode())
    return dealt_rows(problem.train, size, [seed, block], iteration)


def annealed_beta(progress: float) -> int:
    """The even number nearest to what falls linearly from 20 to 2 as `progress` goes to 1."""
    return 2 * round((_BETA_START + (_BETA_END - _BETA_START) * progress) / 2)


def row_weights(kind: str, sigmas: mx.array) -> mx.array | None:
    """How much each row counts in the learning, (rows,) with a mean of 1; None: all the same.

    Args:
        kind: "uniform"; "sampler": (d sigma)^2, the square of how far the sampler goes with what is
            predicted there; "early": sigma, since errors at high noise change the structure.
        sigmas: (rows,) of each row.
    """
    if kind == "uniform":
        return None
    levels = np.array(sigmas, dtype=np.float64)
    if kind == "early":
        weights = levels
    else:
        known = np.unique(levels)[::-1]
        lengths = known - np.append(known[1:], 0.0)
        weights = lengths[np.searchsorted(-known, -levels)] ** 2
    return mx.array((weights / weights.mean()).astype(np.float32))


class Learner:
    """What stays the same from iteration to iteration, and one iteration; see `learn`."""

    def __init__(
        self,
        problem: BlockProblem,
        starts: Sequence[mx.array],
        recipe: Learned,
        rtn_error: float,
        seed: int,
        joint: Joint | None = None,
    ):
        self._problem, self._starts, self._joint = problem, starts, joint
        self._recipe, self._seed = recipe, seed
        self._row_weights = row_weights(recipe.step_weights, problem.data.sigmas)
        self._mix = _MIXED if recipe.inputs == "mixed" else 0.0
        self._count = sum(weight.size for weight in problem.weights)
        self._penalty = recipe.regularizer * rtn_error / self._count
        lines = [
            stored_line(one, scales) for one, scales in zip(starts, problem.scales, strict=True)
        ]
        self._low, self._rise = [low for low, _ in lines], [rise for _, rise in lines]
        mx.eval(self._low, self._rise)
        dtype = problem.data.inputs[0].dtype
        self._soften = softening(dtype)
        batch = min(recipe.batch_size, len(problem.train))
        self._at_once = min(recipe.rows_at_once or batch, batch)
        outputs = max(target[0].size for target in problem.data.targets) * self._at_once
        self.loss_scale = LossScale(dtype, outputs, recipe.iterations)
        self._slopes = mx.value_and_grad(self._scaled_error, argnums=(0, 1))
        self._ordered: mx.array | None = None

    def start(self) -> State:
        """Its values are the alphas of the linears, and then the quantizers' step sizes."""
        values = [start_alpha(start) for start in self._starts]
        if self._joint:
            values += [one.step_size for one in self._joint.quantizers.values()]
        return State.before(values, self.loss_scale.start())

    def _scaled_error(
        self,
        weights: list[mx.array],
        step_sizes: list[mx.array],
        scaling: mx.array,
        rows: mx.array,
        key: mx.array,
    ) -> mx.array:
        see = self._joint.quantizing(step_sizes, key) if self._joint else None
        weighting = None if self._row_weights is None else self._row_weights[rows]
        inputs = self._entering(rows, key)
        errors = stream_errors(self._problem, weights, rows, inputs, weighting, see)
        return sum(errors) / len(errors) * scaling[0]

    def _entering(self, rows: mx.array, key: mx.array) -> list[mx.array]:
        data = self._problem.data
        streams = [stream[rows] for stream in data.entering]
        if data.prefix is None:
            return streams
        keys = mx.random.split(key, len(streams))
        return [
            dropped(own[rows], stream, self._mix, one)
            for own, stream, one in zip(data.inputs, streams, keys, strict=True)
        ]

    def _batch_slopes(
        self, weights: list[mx.array], state: State, rows: np.ndarray
    ) -> tuple[mx.array, list[mx.array]]:
        """Sums over the parts of a batch, scaled: error, slopes of weights and step sizes."""
        step_sizes = state.values[len(weights) :]
        key = mx.random.key((self._seed << 24) + state.iteration)
        error: mx.array | None = None
        total: list[mx.array] = []
        for start in range(0, len(rows) - self._at_once + 1, self._at_once):
            part = mx.array(rows[start : start + self._at_once])
            own, slopes = self._slopes(
                weights, step_sizes, state.scaling, part, mx.random.split(key, start + 2)[-1]
            )
            flat = [*slopes[0], *slopes[1]]
            error = own if error is None else error + own
            total = [a + b for a, b in zip(total, flat, strict=True)] if total else flat
            if len(rows) > self._at_once:
                self._order((error, total), total[len(weights) - 1])
        assert error is not None
        return error, total

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
        recipe, alphas = self._recipe, len(self._rise)
        warmup = recipe.warmup * recipe.iterations
        progress = (state.iteration - warmup) / (recipe.iterations - warmup)
        rows = batch_rows(self._problem, recipe.batch_size, self._seed, state.iteration)
        weights = [
            self._soften(*three)
            for three in zip(state.values[:alphas], self._low, self._rise, strict=True)
        ]
        error, slopes = self._batch_slopes(weights, state, rows)
        parts = len(rows) // self._at_once
        state.scaling, update = self.loss_scale.judge(state.scaling, error, slopes, parts)
        rate, penalty, *bits = device_arrays(
            [
                recipe.learning_rate,
                self._penalty if progress >= 0 else 0.0,
                *bits_of(annealed_beta(max(progress, 0.0)) - 1),
            ]
        )
        before = state.moments()
        move = advance if update.is_taken is None else partial(advance_where, update.is_taken)
        moved = [
            move(*one, (slope, rise, update.unscale, penalty, bits), (rate, *update.corrections))
            for one, slope, rise in zip(before[:alphas], slopes[:alphas], self._rise, strict=True)
        ]
        if self._joint is not None:
            cosine_rate = state.cosine(self._joint.learning_rate, recipe.iterations)
            moved += self._joint.moved(before[alphas:], slopes[alphas:], cosine_rate, update)
        state.advance(moved)
        self._order((error, state.arrays()), state.values[alphas - 1])
        self._note(state, parts)

    def _note(self, state: State, parts: int) -> None:
        """Adds to the history now and then."""
        total, done = self._recipe.iterations, state.iteration
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
    recipe: Learned,
    rtn_error: float,
    seed: int,
    joint: Joint | None = None,
    resume: Resume | None = None,
) -> LearnedCodes:
    """Learns the rounding of a block's weights.

    Args:
        starts: fractional codes of each linear (`grids.fractional_codes`), or what GPTQ made of
            them; the codes below and above are on offer.
        rtn_error: of the block on its training rows (`reconstruct.block_error`).
        seed: of the batches.
        joint: activation quantizers that are learned too.
        resume: see `learning.run`.

    Raises:
        Diverged: see `LossScale`.
    """
    learner = Learner(problem, starts, recipe, rtn_error, seed, joint)
    label = f"rounding of {problem.block.name}"
    with weights_restored(problem), cheap_gradients(problem.block):
        state, loss_scale = learning.run(learner, recipe.iterations, label, resume)
    alphas, step_sizes = state.values[: len(starts)], state.values[len(starts) :]
    codes = [
        hard_codes(start, alpha, scales.bits)
        for start, alpha, scales in zip(starts, alphas, problem.scales, strict=True)
    ]
    mx.eval(codes)
    return LearnedCodes(codes, step_sizes, state, loss_scale)
