"""A network whose grids are tuned: its error as a function of the offsets, and steps of Adam.

What is learned, and why, stands in `tuning`.

Blocks are recomputed in the backward pass (`mx.checkpoint`), so that a step holds the streams
between the blocks and the inside of one block, for `rows_at_once` rows. The whole step is never
compiled, which would take minutes on CUDA.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

from ..backend import mx
from ..network.blocks import Block, Network, Streams
from .divergence import Diverged
from .grids import Packed, dequantize
from .learning_state import State, new_state
from .loss_scale import LossScale, where_taken
from .reconstruct import dealt_rows, split_rows
from .rounding_kernels import adam_step
from .tuned_grids import TunedGrid, stored_grid, tuned_grid, tuned_weight
from .velocity_rows import VelocityRows, enter, guided

_HISTORY_POINTS = 50
_JUDGED_POINTS = 5
_ROWS_AT_ONCE = 8
_NO_WEIGHT = mx.array(0.0)


@dataclass(frozen=True)
class Options:
    """Of a recipe that is tuned.

    Attributes:
        iterations: optimisation steps.
        batch_size: rows a step; fewer if the training rows are fewer.
        learning_rate: of Adam on the offsets, which count in units of a group's own scale.
        rows_at_once: rows of one backward pass; the gradients of a batch are added up. Bounds the
            memory; None takes the whole batch.
    """

    iterations: int
    batch_size: int
    learning_rate: float
    rows_at_once: int | None = None


class _TunedBlock:
    """Computes with tuned weights, and again in the backward pass.

    Attributes:
        offsets: two arrays a linear, set before each pass.
    """

    def __init__(self, block: Block, grids: Sequence[TunedGrid]):
        self._block, self._grids = block, grids
        self.offsets: Sequence[mx.array] = ()

    def __call__(self, streams: Streams, positions: mx.array | None) -> tuple[mx.array, ...]:
        def compute(streams: list[mx.array], offsets: list[mx.array]) -> list[mx.array]:
            for index, grid in enumerate(self._grids):
                weight = tuned_weight(grid, *offsets[2 * index : 2 * index + 2])
                grid.linear.module.weight = weight.astype(streams[0].dtype)
            outputs = self._block(streams, positions)
            # The graph holds the weights as long as it needs them, the modules hold none.
            for grid in self._grids:
                grid.linear.module.weight = _NO_WEIGHT
            return list(outputs)

        return tuple(mx.checkpoint(compute)(list(streams), list(self.offsets)))


class Tuner:
    """What stays the same from iteration to iteration, and one iteration; see `tune`."""

    def __init__(
        self,
        model: Network,
        packed: Mapping[str, Packed],
        kind: str,
        rows: VelocityRows,
        options: Options,
        seed: int,
        holdout: float,
    ):
        self._model, self._rows, self.options, self._seed = model, rows, options, seed
        self.grids = {
            block.name: [
                tuned_grid(linear, packed[linear.name], kind)
                for linear in block.linears
                if linear.name in packed
            ]
            for block in model.blocks
        }
        self._blocks = {
            block.name: _TunedBlock(block, self.grids[block.name]) for block in model.blocks
        }
        self.train, self.held_out = split_rows(rows.rows_per_image, holdout)
        self._batch = min(options.batch_size, len(self.train))
        self._at_once = min(options.rows_at_once or self._batch, self._batch)
        outputs = rows.targets[0].size * self._at_once
        self.loss_scale = LossScale(rows.tokens.dtype, outputs, options.iterations)
        # Of the scaled mean error over some rows, with respect to the offsets.
        self.slopes = mx.value_and_grad(self._scaled_error)

    def start(self) -> State:
        """Its values are the offsets of scale and of value, linear by linear."""
        shapes = [grid.shape for grids in self.grids.values() for grid in grids]
        offsets = [mx.zeros(shape) for shape in shapes for _ in range(2)]
        return new_state(offsets, self.loss_scale.start())

    def tuned_blocks(self) -> AbstractContextManager[None]:
        """Within the context the network computes with the offsets."""
        return self._model.blocks_replaced(lambda block: self._blocks[block.name])

    def _scaled_error(
        self,
        offsets: list[mx.array],
        scaling: mx.array,
        latents: mx.array,
        tokens: mx.array,
        index: mx.array,
    ) -> mx.array:
        """Mean error over some rows, times the loss scale; modulation has been set."""
        left = iter(offsets)
        for name, block in self._blocks.items():
            block.offsets = [next(left) for _ in range(2 * len(self.grids[name]))]
        output = self._model.forward(latents, tokens)
        return self.loss_scale.scaled(mx.mean(row_errors(self._rows, output, index)), scaling)

    def iterate(self, state: State) -> None:
        """One step: advances `state`."""
        options = self.options
        index = dealt_rows(self.train, self._batch, [self._seed], state.iteration)
        parts = len(index) // self._at_once
        slopes: list[mx.array] = []
        error = mx.array(0.0)
        with self.tuned_blocks():
            for part in np.split(index[: parts * self._at_once], parts):
                how = (*enter(self._model, self._rows, part), mx.array(part))
                own, rising = self.slopes(state.values, state.scaling, *how)
                error = error + own
                slopes = [a + b for a, b in zip(slopes, rising, strict=True)] if slopes else rising
                mx.eval(error, slopes)
        slopes = [slope / parts for slope in slopes]
        taken = self.loss_scale.read(state.scaling).taken
        state.scaling, step = self.loss_scale.judge(state.scaling, error / parts, slopes)
        turn = math.pi * state.iteration / options.iterations
        rate = mx.array(options.learning_rate * (1 + math.cos(turn)) / 2)
        before = zip(state.values, state.means, state.squares, strict=True)
        moved = [
            where_taken(step, adam_step(*one, slope * step.unscale, rate, *step.corrections), one)
            for one, slope in zip(before, slopes, strict=True)
        ]
        state.values, state.means, state.squares = map(list, zip(*moved, strict=True))
        state.iteration += 1
        mx.eval(state.arrays())
        scaling = self.loss_scale.read(state.scaling)
        if scaling.taken > taken:
            state.pending += [scaling.error]
        self._note(state)

    def _note(self, state: State) -> None:
        """Adds to the history now and then: the batches' mean error since, and the held-out one."""
        total, done = self.options.iterations, state.iteration
        judged = done % max(1, total // _JUDGED_POINTS) == 0 or done == total
        if state.pending and (judged or done % max(1, total // _HISTORY_POINTS) == 0):
            point = {"iteration": done, "error": sum(state.pending) / len(state.pending)}
            point |= self.loss_scale.noted(self.loss_scale.read(state.scaling), done)
            if judged:
                point["held_out"] = self.judged(self.stored(state))
                if not math.isfinite(point["held_out"]):
                    raise Diverged(
                        f"After {done} steps its error on held-out rows is no finite number",
                        "Take a smaller learning rate, or set model.dtype to float32 or bfloat16",
                    )
            state.history.append(point)
            state.pending = []

    def stored(self, state: State) -> dict[str, Packed]:
        """Linear's name -> its weight on the tuned grid, as it is stored."""
        left = iter(state.values)
        return {
            grid.linear.name: stored_grid(grid, next(left), next(left))
            for grids in self.grids.values()
            for grid in grids
        }

    def judged(self, packed: Mapping[str, Packed], rows: np.ndarray | None = None) -> float:
        """Mean error of the network with these weights, stored as they are.

        Args:
            rows: indices; None: the held-out rows.
        """
        rows = self.held_out if rows is None else rows
        dtype = self._rows.tokens.dtype
        for grids in self.grids.values():
            for grid in grids:
                grid.linear.module.weight = dequantize(packed[grid.linear.name], dtype)
        total = 0.0
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            part = rows[start : start + _ROWS_AT_ONCE]
            output = self._model.forward(*enter(self._model, self._rows, part))
            total += mx.sum(row_errors(self._rows, output, mx.array(part))).item()
        return total / len(rows)


def row_errors(rows: VelocityRows, output: mx.array, index: mx.array) -> mx.array:
    """(n,) float32: |v_q - v|^2 / |v|^2 of each of some rows, given the network's output there."""
    difference = guided(rows, output) - rows.targets[index]
    return mx.mean(difference * difference, axis=(1, 2, 3)) / rows.energies[index]
