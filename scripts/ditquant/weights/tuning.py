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
from typing import Any

import numpy as np

from ..backend import mx
from ..network.blocks import Block, Network, Streams
from ..network.calibration import Trajectory
from ..planning.recipes import Recipe, Tuning
from . import learning
from .block_gradients import cheap_gradients
from .block_io import in_parts
from .divergence import SMALLER_RATE, Diverged, check_error, check_finite
from .grids import Packed, dequantize
from .learning import Resume, State
from .loss_scale import LossScale, where_taken
from .other_linears import quantize_other_linears
from .reconstruct import dealt_rows, split_rows
from .rounding import adam_step
from .tuned_grids import TunedGrid, stored_grid, tuned_grid, tuned_weight
from .velocity_rows import ROWS_AT_ONCE, VelocityRows, enter, row_errors, velocity_rows

FORMAT = "ditquant.tuning"
_HISTORY_POINTS = 50
_JUDGED_POINTS = 5
_NO_WEIGHT = mx.array(0.0)


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
        rows: VelocityRows,
        recipe: Recipe,
        seed: int,
    ):
        self._model, self._rows, self._seed = model, rows, seed
        self.options = options = tuning_of(recipe)
        self.grids = {
            block.name: [
                tuned_grid(linear, packed[linear.name], recipe.grid)
                for linear in block.linears
                if linear.name in packed
            ]
            for block in model.blocks
        }
        self._blocks = {
            block.name: _TunedBlock(block, self.grids[block.name]) for block in model.blocks
        }
        self.train, self.held_out = split_rows(rows.rows_per_image, recipe.holdout)
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
        return State.before(offsets, self.loss_scale.start())

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
        return mx.mean(row_errors(self._rows, output, index)) * scaling[0]

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
        state.scaling, update = self.loss_scale.judge(state.scaling, error / parts, slopes)
        rate = state.cosine(options.learning_rate, options.iterations)
        moved = []
        for before, slope in zip(state.moments(), slopes, strict=True):
            after = adam_step(*before, slope * update.unscale, rate, *update.corrections)
            moved.append(where_taken(update, after, before))
        state.advance(moved)
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
                        f"{SMALLER_RATE}, or set model.dtype to float32 or bfloat16",
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
        for part in in_parts(rows, ROWS_AT_ONCE):
            output = self._model.forward(*enter(self._model, self._rows, part))
            total += mx.sum(row_errors(self._rows, output, mx.array(part))).item()
        return total / len(rows)


@dataclass(frozen=True)
class Tuned:
    """A tuned network.

    Attributes:
        packed: linear's name -> its quantized weight, tuned or, where that did not help, the start.
        document: the JSON payload, format `FORMAT`.
    """

    packed: dict[str, Packed]
    document: dict[str, Any]


def tune(
    model: Network,
    packed: Mapping[str, Packed],
    rows: VelocityRows,
    recipe: Recipe,
    seed: int,
    resume: Resume | None = None,
) -> Tuned:
    """Tunes the scales and biases of a network's packed linears.

    Args:
        model: the MMDiT with everything that is not in `packed` as it will run; the weights of the
            linears in `packed` are replaced in it.
        packed: linear's name -> its quantized weight.
        rows: what the network is to give back.
        recipe: one that is tuned.
        seed: of the batches.
        resume: see `learning.run`.

    Raises:
        UserError: the error of the start is NaN or infinite.
    """
    with ExitStack() as cheap:
        for block in model.blocks:
            cheap.enter_context(cheap_gradients(block))
        tuner = Tuner(model, packed, rows, recipe, seed)
        errors = {"start": tuner.judged(packed)}
        check_finite(errors.values(), "this recipe", "the network")
        result: dict[str, Any] = {"kept": "start", "diverged": None, "offsets": None}
        result |= {"loss_scale": None, "history": []}
        tuned: dict[str, Packed] = {}
        try:
            state, result["loss_scale"] = learning.run(
                tuner, tuner.options.iterations, "tuning of the whole network", resume
            )
            result["history"] = state.history
            errors["tuned"] = state.history[-1]["held_out"]
            result["offsets"] = _offset_sizes(state)
            learned = tuner.stored(state)
            if errors["tuned"] < errors["start"]:
                result["kept"], tuned = "tuned", learned
            else:
                check_error(tuner.judged(learned, tuner.train), tuner.judged(packed, tuner.train))
        except Diverged as error:
            result["diverged"] = error.record()
            result["history"] = result["history"] or error.history
    document = {
        "recipe": recipe.params(),
        "seed": seed,
        "rows": {"train": len(tuner.train), "held_out": len(tuner.held_out)},
        "error": errors,
        **result,
    }
    return Tuned({**packed, **tuned}, document)


def _offset_sizes(state: State) -> dict[str, float]:
    """Root mean squares over all groups: of a scale's change, relative, and of a value's shift."""

    def size(arrays: Sequence[mx.array]) -> float:
        total = sum(mx.sum(array**2).item() for array in arrays)
        return math.sqrt(total / sum(array.size for array in arrays))

    return {"scale": size(state.values[::2]), "shift": size(state.values[1::2])}


def tuning_of(recipe: Recipe) -> Tuning:
    """How a recipe is tuned.

    Raises:
        ValueError: it is not.
    """
    if recipe.tuning is None:
        raise ValueError("the recipe is not tuned")
    return recipe.tuning


def tune_recipe(
    model: Network,
    packed: Mapping[str, Packed],
    parameters: Mapping[str, mx.array],
    trajectories: Sequence[Trajectory],
    recipe: Recipe,
    seed: int,
    resume: Resume | None = None,
) -> Tuned:
    """Tunes what a recipe made of all blocks.

    Args:
        model: the full-precision MMDiT, which gives the targets; it is changed.
        packed, parameters: of all blocks (`block_files.read_packed`, `read_parameters`).
        trajectories: full-precision ones; the last of them are held out.
        recipe: one that is tuned.
    """
    rows = velocity_rows(model, trajectories, tuning_of(recipe).stride)
    model.module.load_weights(list(parameters.items()), strict=False)
    modules = dict(model.module.named_modules())
    for path, one in quantize_other_linears(model, recipe).packed.items():
        modules[path].weight = dequantize(one, modules[path].weight.dtype)
    return tune(model, packed, rows, recipe, seed, resume)
