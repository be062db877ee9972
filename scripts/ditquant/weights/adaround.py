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

With `Joint` the steps of simulated activation quantizers are learned together with the rounding
(TaQ-DiT, arXiv 2411.14172; `lsq`).

State is float32 whatever the model's dtype. The gradient is taken by automatic differentiation
down to the weights (`block_gradients`), and from there to alpha by the closed forms in `rounding`.
What an iteration does to each weight is compiled (`rounding_kernels`); the block's own passes stay
uncompiled, because compiling them as one graph takes minutes on CUDA. The host runs one backward
pass ahead of the device, since what it has ordered occupies memory, and reads nothing back but for
the history.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..backend import device_arrays, mx
from ..network.blocks import Linear
from ..progress import ticking
from .block_gradients import cheap_gradients
from .learning_state import State, load_state, new_state, save_state
from .lsq import ActivationQuantizer, dropped, quantize
from .reconstruct import BlockProblem, dealt_rows, stream_errors, weights_restored
from .rounding import bits_of, hard_codes, is_binary, start_alpha
from .rounding_kernels import ADAM_DECAY, adam_step, advance, softening, stored_line

_BETA_START, _BETA_END = 20, 2
_HISTORY_POINTS = 50
_SAVES = 20


@dataclass(frozen=True)
class Joint:
    """Joint learning of activation quantizers.

    Attributes:
        quantizers: `blocks.shared_input` of a linear -> its quantizer at the start.
        input_of: linear's name -> key in `quantizers`.
        learning_rate: of Adam on the steps, with a cosine to 0.
        drop: share of elements left unquantized in each iteration (QDrop).
    """

    quantizers: dict[str, ActivationQuantizer]
    input_of: dict[str, str]
    learning_rate: float
    drop: float


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
        self._loss_scale = loss_scale(problem, self._at_once)
        self._slopes = mx.value_and_grad(self._scaled_error, argnums=(0, 1))
        self._ordered: mx.array | None = None

    def start(self) -> State:
        alphas = [start_alpha(steps) for steps in self._starts]
        steps = [one.step for one in self._joint.quantizers.values()] if self._joint else []
        return new_state(alphas, steps)

    def _scaled_error(
        self, weights: list[mx.array], steps: list[mx.array], rows: mx.array, key: mx.array
    ) -> mx.array:
        see = self._quantizing(steps, key) if self._joint else None
        weighting = None if self._row_weights is None else self._row_weights[rows]
        inputs = self._entering(rows, key)
        errors = stream_errors(self._problem, weights, rows, inputs, weighting, see)
        return self._loss_scale * sum(errors) / len(errors)

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

    def _quantizing(
        self, steps: list[mx.array], key: mx.array
    ) -> Callable[[Linear, mx.array], mx.array]:
        joint = self._joint
        assert joint is not None
        places = {name: index for index, name in enumerate(joint.quantizers)}
        keys = mx.random.split(mx.random.split(key)[1], len(places))

        def see(linear: Linear, x: mx.array) -> mx.array:
            name = joint.input_of[linear.name]
            index = places[name]
            rounded = quantize(x, joint.quantizers[name], steps[index])
            return dropped(x, rounded, joint.drop, keys[index])

        return see

    def _batch_slopes(
        self, weights: list[mx.array], state: State, rows: np.ndarray
    ) -> tuple[mx.array, list[mx.array], list[mx.array]]:
        """Sums over the parts of a batch: error, slopes of the weights, slopes of the steps."""
        key = mx.random.key((self._seed << 24) + state.iteration)
        total: tuple[mx.array, list[mx.array], list[mx.array]] | None = None
        for start in range(0, len(rows) - self._at_once + 1, self._at_once):
            part = mx.array(rows[start : start + self._at_once])
            error, (slopes, steps) = self._slopes(
                weights, state.steps, part, mx.random.split(key, start + 2)[-1]
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
        weights = [
            self._soften(*three) for three in zip(state.alphas, self._low, self._rise, strict=True)
        ]
        error, slopes, step_slopes = self._batch_slopes(weights, state, rows)
        parts = len(rows) // self._at_once
        done = state.iteration + 1
        rate, scale, penalty, *more = device_arrays(
            [
                options.learning_rate,
                1 / (self._loss_scale * parts),
                self._penalty if progress >= 0 else 0.0,
                *(1 / (1 - keep**done) for keep in ADAM_DECAY),
                *bits_of(annealed_beta(max(progress, 0.0)) - 1),
            ]
        )
        corrections, bits = more[:2], more[2:]
        updated = [
            advance(*one, (slope, rise, scale, penalty, bits), (rate, *corrections))
            for *one, slope, rise in zip(
                state.alphas, state.means, state.squares, slopes, self._rise, strict=True
            )
        ]
        state.alphas, state.means, state.squares = map(list, zip(*updated, strict=True))
        self._move_steps(state, step_slopes, scale, corrections)
        state.iteration = done
        self._order((error, state.arrays()), state.alphas[-1])
        if done % max(1, options.iterations // _HISTORY_POINTS) == 0 or done == options.iterations:
            binary = [mx.sum(is_binary(alpha)) for alpha in state.alphas]
            mx.eval(binary)
            point = {"iteration": done, "error": error.item() / (self._loss_scale * parts)}
            share = sum(count.item() for count in binary) / self._count
            state.history.append({**point, "binary_share": share})

    def _move_steps(
        self, state: State, slopes: list[mx.array], scale: mx.array, corrections: list[mx.array]
    ) -> None:
        if self._joint is None:
            return
        turn = math.pi * state.iteration / self._options.iterations
        rate = mx.array(self._joint.learning_rate * (1 + math.cos(turn)) / 2)
        moved = [
            adam_step(step, mean, square, slope * scale, rate, *corrections)
            for step, mean, square, slope in zip(
                state.steps, state.step_means, state.step_squares, slopes, strict=True
            )
        ]
        state.steps, state.step_means, state.step_squares = map(list, zip(*moved, strict=True))
        # A step of zero would divide by zero; a range has never to shrink that far.
        smallest = [0.01 * one.step for one in self._joint.quantizers.values()]
        state.steps = [mx.maximum(*pair) for pair in zip(state.steps, smallest, strict=True)]


def loss_scale(problem: BlockProblem, rows: int) -> float:
    """What keeps float16 gradients of a mean over a million outputs from underflowing."""
    if problem.data.inputs[0].dtype != mx.float16:
        return 1.0
    elements = max(target[0].size for target in problem.data.targets) * rows
    return 2.0 ** math.floor(math.log2(elements))


def learn(
    problem: BlockProblem,
    starts: Sequence[mx.array],
    options: Options,
    rtn_error: float,
    seed: int,
    row_weights: mx.array | None = None,
    joint: Joint | None = None,
    resume: Path | None = None,
    key: str = "",
) -> tuple[list[mx.array], State]:
    """Learns the rounding of a block's weights.

    Args:
        starts: W / scale + zero of each linear, or what GPTQ made of it (`gptq.gptq_steps`); the
            codes below and above are on offer.
        rtn_error: of the block on its training rows (`reconstruct.block_error`).
        seed: of the batches.
        row_weights: (rows,) how much each row counts in the error; None: all the same.
        joint: activation quantizers that are learned too.
        resume: where to keep the state now and then; a run that finds it there under the same
            `key` goes on from it and ends with the same bits as one that was never interrupted.

    Returns:
        Hard codes of each linear, (outputs, inputs) float32 integers, and the final state.
    """
    learner = Learner(problem, starts, options, rtn_error, seed, row_weights, joint)
    state = (load_state(resume, key) if resume else None) or learner.start()
    total = options.iterations
    with (
        weights_restored(problem),
        cheap_gradients(problem.block),
        ticking(f"rounding of {problem.block.name}", total, state.iteration) as tick,
    ):
        while state.iteration < total:
            learner.iterate(state)
            if resume and state.iteration % max(1, total // _SAVES) == 0:
                save_state(resume, state, key)
            tick()
    codes = [
        hard_codes(steps, alpha, 2**scales.bits)
        for steps, alpha, scales in zip(starts, state.alphas, problem.scales, strict=True)
    ]
    mx.eval(codes)
    return codes, state
