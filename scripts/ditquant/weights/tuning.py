"""End-to-end tuning: scales and biases of a quantized network, by the velocity that it gives.

Blocks are quantized one by one, each for its own output. What their errors add up to at the end is
seen here: with all codes fixed, the offsets d and e of every group (`tuned_grids`) are learned by
Adam, with a cosine to 0, on

    mean over rows of |v_q(x, sigma, c) - v(x, sigma, c)|^2 / |v(x, sigma, c)|^2

where v is the guided velocity at a stored latent, which the sampler follows, and a row one image at
one step. (With prompt and negative prompt as rows of their own, the error of each fell by a quarter
and that of the pictures rose: their errors became less alike, which guidance multiplies.) The
gradient goes through the exact values s q + b. Rows of some images are held out: the tuned grids,
rounded as they are stored, are kept only if their error there is below that of the start.

Blocks are recomputed in the backward pass (`mx.checkpoint`), so that a step holds the streams
between the blocks and the inside of one block, for `rows_at_once` rows. The whole step is never
compiled, which would take minutes on CUDA.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..backend import mx, nn
from ..network.blocks import (
    ANY_TIMESTEP,
    Block,
    InPlace,
    blocks_replaced,
    walk_blocks,
    walk_linears,
)
from ..network.calibration import Trajectory
from ..progress import ticking
from .block_gradients import cheap_gradients
from .grids import Packed, dequantize
from .learning_state import State, load_state, new_state, save_state
from .loss_scale import LossScale, where_taken
from .other_linears import quantize_other_linears
from .reconstruct import dealt_rows, split_rows
from .rounding_kernels import adam_step
from .tuned_grids import TunedGrid, stored_grid, tuned_grid, tuned_weight
from .velocity_rows import VelocityRows, enter, guided, velocity_rows

FORMAT = "ditquant.tuning"
_HISTORY_POINTS = 50
_JUDGED_POINTS = 5
_SAVES = 20
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


@dataclass(frozen=True)
class Tuned:
    """A tuned network.

    Attributes:
        packed: linear's name -> its quantized weight, tuned or, where that did not help, the start.
        document: the JSON payload, format `FORMAT`.
    """

    packed: dict[str, Packed]
    document: dict[str, Any]


class _TunedBlock(InPlace):
    """Computes with tuned weights, and again in the backward pass.

    Attributes:
        offsets: two arrays a linear, set before each pass.
    """

    def __init__(self, block: Block, grids: Sequence[TunedGrid]):
        super().__init__(block)
        self._grids = grids
        self.offsets: Sequence[mx.array] = ()

    def __call__(self, *arguments: mx.array, positional_encodings: mx.array | None = None) -> Any:
        is_dropped: list[bool] = []

        def compute(streams: list[mx.array], offsets: list[mx.array]) -> list[mx.array]:
            for index, grid in enumerate(self._grids):
                weight = tuned_weight(grid, *offsets[2 * index : 2 * index + 2])
                grid.linear.module.weight = weight.astype(streams[0].dtype)
            output = self._block.module(
                *streams, ANY_TIMESTEP, positional_encodings=positional_encodings
            )
            # The graph holds the weights as long as it needs them, the modules hold none.
            for grid in self._grids:
                grid.linear.module.weight = _NO_WEIGHT
            outputs = output if isinstance(output, tuple) else (output,)
            is_dropped[:] = [stream is None for stream in outputs]
            return [stream for stream in outputs if stream is not None]

        streams = list(arguments[: len(self._block.streams)])
        kept = iter(mx.checkpoint(compute)(streams, list(self.offsets)))
        outputs = tuple(None if dropped else next(kept) for dropped in is_dropped)
        return outputs if len(outputs) > 1 else outputs[0]


class Tuner:
    """What stays the same from iteration to iteration, and one iteration; see `tune`."""

    def __init__(
        self,
        model: nn.Module,
        packed: Mapping[str, Packed],
        kind: str,
        rows: VelocityRows,
        options: Options,
        seed: int,
        holdout: float,
    ):
        self._model, self._rows, self._options, self._seed = model, rows, options, seed
        self.grids = {
            block.name: [
                tuned_grid(linear, packed[linear.name], kind)
                for linear in walk_linears(block)
                if linear.name in packed
            ]
            for block in walk_blocks(model)
        }
        self._blocks = {
            block.name: _TunedBlock(block, self.grids[block.name]) for block in walk_blocks(model)
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
        return blocks_replaced(self._model, lambda block: self._blocks[block.name])

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
        output = self._model(latents, tokens, ANY_TIMESTEP)
        return self.loss_scale.scaled(mx.mean(row_errors(self._rows, output, index)), scaling)

    def iterate(self, state: State) -> None:
        """One step: advances `state`."""
        options = self._options
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
        total, done = self._options.iterations, state.iteration
        judged = done % max(1, total // _JUDGED_POINTS) == 0 or done == total
        if state.pending and (judged or done % max(1, total // _HISTORY_POINTS) == 0):
            point = {"iteration": done, "error": sum(state.pending) / len(state.pending)}
            point |= self.loss_scale.noted(self.loss_scale.read(state.scaling), done)
            if judged:
                point["held_out"] = self.judged(self.stored(state))
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

    def judged(self, packed: Mapping[str, Packed]) -> float:
        """Mean error over the held-out rows of the network with these weights."""
        dtype = self._rows.tokens.dtype
        for grids in self.grids.values():
            for grid in grids:
                grid.linear.module.weight = dequantize(packed[grid.linear.name], dtype)
        total = 0.0
        for start in range(0, len(self.held_out), _ROWS_AT_ONCE):
            part = self.held_out[start : start + _ROWS_AT_ONCE]
            output = self._model(*enter(self._model, self._rows, part), ANY_TIMESTEP)
            total += mx.sum(row_errors(self._rows, output, mx.array(part))).item()
        return total / len(self.held_out)


def row_errors(rows: VelocityRows, output: mx.array, index: mx.array) -> mx.array:
    """(n,) float32: |v_q - v|^2 / |v|^2 of each of some rows, given the network's output there."""
    difference = guided(rows, output) - rows.targets[index]
    return mx.mean(difference * difference, axis=(1, 2, 3)) / rows.energies[index]


def tune(
    model: nn.Module,
    packed: Mapping[str, Packed],
    kind: str,
    rows: VelocityRows,
    options: Options,
    seed: int,
    holdout: float,
    resume: Path | None = None,
    key: str = "",
) -> Tuned:
    """Tunes the scales and biases of a network's packed linears.

    Args:
        model: the MMDiT with everything that is not in `packed` as it will run; the weights of the
            linears in `packed` are replaced in it.
        packed: linear's name -> its quantized weight.
        kind: of the recipe's grid; see `tuned_grids`.
        rows: what the network is to give back.
        seed: of the batches.
        holdout: share of the rows that only judge, whole images.
        resume: where to keep the state now and then; a run that finds it there under the same
            `key` goes on from it and ends with the same bits as one that was never interrupted.
    """
    with ExitStack() as cheap:
        for block in walk_blocks(model):
            cheap.enter_context(cheap_gradients(block))
        tuner = Tuner(model, packed, kind, rows, options, seed, holdout)
        state = (load_state(resume, key) if resume else None) or tuner.start()
        total = options.iterations
        with ticking("tuning of the whole network", total, state.iteration) as tick:
            while state.iteration < total:
                tuner.iterate(state)
                if resume and state.iteration % max(1, total // _SAVES) == 0:
                    save_state(resume, state, key)
                tick()
        loss_scale = tuner.loss_scale.finished(state.scaling)
        start_error = tuner.judged(packed)
        tuned = tuner.stored(state)
        error = state.history[-1]["held_out"]
    is_better = error < start_error
    document = {
        "seed": seed,
        "rows": {"train": len(tuner.train), "held_out": len(tuner.held_out)},
        "error": {"start": start_error, "tuned": error},
        "kept": "tuned" if is_better else "start",
        "offsets": _offset_sizes(state),
        "loss_scale": loss_scale,
        "history": state.history,
    }
    return Tuned({**packed, **tuned} if is_better else dict(packed), document)


def _offset_sizes(state: State) -> dict[str, float]:
    """Root mean squares over all groups: of a scale's change, relative, and of a value's shift."""

    def size(arrays: Sequence[mx.array]) -> float:
        total = sum(mx.sum(array**2).item() for array in arrays)
        return math.sqrt(total / sum(array.size for array in arrays))

    return {"scale": size(state.values[::2]), "shift": size(state.values[1::2])}


def tuning_options(recipe: Mapping[str, Any]) -> Options:
    return Options(
        iterations=recipe["tune_iterations"],
        batch_size=recipe["tune_batch_size"],
        learning_rate=recipe["tune_learning_rate"],
        rows_at_once=recipe["tune_rows_at_once"],
    )


def tune_recipe(
    model: nn.Module,
    packed: Mapping[str, Packed],
    parameters: Mapping[str, mx.array],
    trajectories: Sequence[Trajectory],
    recipe: Mapping[str, Any],
    seed: int,
    resume: Path | None = None,
    key: str = "",
) -> Tuned:
    """Tunes what a recipe made of all blocks.

    Args:
        model: the full-precision MMDiT, which gives the targets; it is changed.
        packed, parameters: of all blocks (`block_files.read_packed`, `read_parameters`).
        trajectories: full-precision ones; the last of them are held out.
        recipe: a validated entry of the configuration's `recipes`, with `tune_iterations` above 0.
    """
    rows = velocity_rows(model, trajectories, recipe["tune_stride"])
    model.load_weights(list(parameters.items()), strict=False)
    others = quantize_other_linears(
        model, recipe["quantize"], recipe["other_bits"], recipe["group_size"]
    )
    modules = dict(model.named_modules())
    for path, one in others.packed.items():
        modules[path].weight = dequantize(one, modules[path].weight.dtype)
    options = tuning_options(recipe)
    tuned = tune(model, packed, recipe["grid"], rows, options, seed, recipe["holdout"], resume, key)
    return Tuned(tuned.packed, {"recipe": dict(recipe), **tuned.document})
