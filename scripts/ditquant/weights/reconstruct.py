"""A block as a function of its weights, and how far quantized weights move its output.

Block reconstruction (BRECQ, Li et al. 2021, arXiv 2102.05426) chooses the weights of a whole block
so that its output stays what the full-precision model computed. The error of a stream is divided
by its update energy, the mean square of what the block adds to it, so that blocks and models
compare: 0.01 means that the block's update is off by 1 % in power. Rows of whole images are held
out and judge; the others are learned from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
from mlx.utils import tree_map

from ..backend import mx
from ..network.blocks import Block, Linear, Network, tapped
from ..planning.recipes import Recipe
from .block_io import BlockData, in_parts, run_block
from .grids import Grid, Scales, dequantize, fit_scales, pack


@dataclass(frozen=True)
class BlockProblem:
    """A block, its data, and the grid laid over each of its linears.

    Attributes:
        block: of the full-precision model.
        linears: those that are quantized; the lists below follow their order.
        weights: their full-precision matrices (outputs, inputs) float32.
        grids: the kind of grid of each, by the recipe.
        scales: the grid laid over each.
        data: inputs and full-precision outputs.
        modulation: adaLN parameters of each stream for all rows, (rows, 1, 1, n * hidden).
        positions: rotary tables, or None.
        energies: update energy of each target stream over the training rows.
        train, held_out: row indices.
    """

    block: Block
    linears: tuple[Linear, ...]
    weights: tuple[mx.array, ...]
    grids: tuple[Grid, ...]
    scales: tuple[Scales, ...]
    data: BlockData
    modulation: tuple[mx.array, ...]
    positions: mx.array | None
    energies: tuple[float, ...]
    train: np.ndarray
    held_out: np.ndarray

    def reread(self) -> BlockProblem:
        """The problem with the block's parameters as they are now."""
        weights = tuple(linear.module.weight.astype(mx.float32) for linear in self.linears)
        scales = tuple(
            fit_scales(weight, grid, linear.name)
            for weight, grid, linear in zip(weights, self.grids, self.linears, strict=True)
        )
        modulation = tuple(
            stream.modulation(self.data.modulation) for stream in self.block.streams.values()
        )
        mx.eval(weights, modulation, [(one.scales, one.zeros) for one in scales])
        return replace(self, weights=weights, scales=scales, modulation=modulation)


def split_rows(rows_per_image: Sequence[int], share: float) -> tuple[np.ndarray, np.ndarray]:
    """Training and held-out row indices.

    Whole images are held out, the last ones, because rows of one image resemble each other: the
    nearest number of images to `share`, at least one and never all. A single image gives its last
    rows.
    """
    total = sum(rows_per_image)
    images = len(rows_per_image)
    if images > 1:
        count = min(max(round(share * images), 1), images - 1)
        kept = sum(rows_per_image[: images - count])
    else:
        kept = min(max(total - round(share * total), 1), total - 1) if total > 1 else total
    rows = np.arange(total)
    # One single row has to serve as both.
    return rows[:kept], rows[kept:] if kept < total else rows


def dealt_rows(rows: np.ndarray, size: int, seeds: Sequence[int], iteration: int) -> np.ndarray:
    """The rows of one step's batch; the same whenever asked for.

    Rows are shuffled once an epoch and dealt out, so that Adam's first moment averages over most of
    them: batches drawn independently leave it three times the noise.

    Args:
        seeds: of the shuffling, beside the epoch.
    """
    size = min(size, len(rows))
    epoch, place = divmod(iteration, len(rows) // size)
    order = np.random.default_rng([*seeds, epoch]).permutation(rows)
    return order[place * size : (place + 1) * size]


def _update_energies(data: BlockData, rows: np.ndarray) -> tuple[float, ...]:
    index = mx.array(rows)
    energies = []
    for before, after in zip(data.inputs, data.targets, strict=False):
        update = after[index].astype(mx.float32) - before[index].astype(mx.float32)
        energies.append(max(mx.mean(update**2).item(), 1e-12))
    return tuple(energies)


def block_problem(model: Network, name: str, data: BlockData, recipe: Recipe) -> BlockProblem:
    """Sets up the block called `name` of a full-precision model; see `BlockProblem`.

    Args:
        recipe: gives the grid of each linear, and the share of the rows that only judge.

    Raises:
        UserError: the grid does not fit one of the block's linears.
    """
    block = model.block(name)
    grids = [(linear, recipe.grid_of(linear.name)) for linear in block.linears]
    quantized = [(linear, grid) for linear, grid in grids if grid is not None]
    train, held_out = split_rows(data.rows_per_image, recipe.holdout)
    return BlockProblem(
        block=block,
        linears=tuple(linear for linear, _ in quantized),
        weights=(),
        grids=tuple(grid for _, grid in quantized),
        scales=(),
        data=data,
        modulation=(),
        positions=model.positional_encodings(data.latent_size, data.text_tokens),
        energies=_update_energies(data, train),
        train=train,
        held_out=held_out,
    ).reread()


@contextmanager
def weights_restored(problem: BlockProblem) -> Iterator[None]:
    """The block's own parameters are back at the end, whatever was put in their place."""
    before = problem.block.module.parameters()
    try:
        yield
    finally:
        problem.block.module.update(before)


def stream_errors(
    problem: BlockProblem,
    weights: Sequence[mx.array],
    rows: mx.array,
    inputs: Sequence[mx.array] | None = None,
    row_weights: mx.array | None = None,
    see: Callable[[Linear, mx.array], mx.array | None] | None = None,
) -> list[mx.array]:
    """Mean squared output error of each stream over `rows`, in units of its update energy.

    Leaves `weights` in the block: call it within `weights_restored`.

    Args:
        weights: one (outputs, inputs) matrix a linear; computed with in the model's dtype.
        rows: (n,) indices.
        inputs: the streams that enter in these rows, if not those of the data.
        row_weights: (n,) how much each row counts; None: all the same.
        see: what the linears compute with instead of their inputs (`blocks.tapped`), for simulated
            activation quantization.

    Returns:
        float32 scalars, one a target stream; differentiable in `weights`.
    """
    for linear, own, weight in zip(problem.linears, problem.weights, weights, strict=True):
        dtype = problem.data.inputs[0].dtype
        linear.module.weight = weight.reshape(own.shape).astype(dtype)
    if inputs is None:
        inputs = [stream[rows] for stream in problem.data.entering]
    with tapped(problem.linears, see) if see else nullcontext():
        outputs = run_block(problem.block, problem.modulation, rows, inputs, problem.positions)
    errors = []
    for output, target, energy in zip(outputs, problem.data.targets, problem.energies, strict=True):
        difference = output.astype(mx.float32) - target[rows].astype(mx.float32)
        squares = difference * difference
        if row_weights is not None:
            squares = squares * row_weights.reshape(-1, *[1] * (squares.ndim - 1))
        errors.append(mx.mean(squares) / energy)
    return errors


def block_error(problem: BlockProblem, weights: Sequence[mx.array], rows: np.ndarray) -> float:
    """The block's error over many rows: the mean over streams of `stream_errors`.

    Computed in float32 whatever the model's dtype: at SD3-medium's size rounding to float16 inside
    of a block moves its output by 1.4e-4 of the update, half as much as all that GPTQ leaves
    (benchmarks/results/real_size.md).
    """
    total = 0.0
    with weights_restored(problem):
        for part in in_parts(rows):
            own, index = problem, mx.array(part)
            if problem.data.inputs[0].dtype != mx.float32:
                own, index = _in_float32(problem, index), mx.arange(len(part))
            errors = stream_errors(own, weights, index)
            total += sum(error.item() for error in errors) / len(errors) * len(part)
    return total / len(rows)


def _in_float32(problem: BlockProblem, rows: mx.array) -> BlockProblem:
    """Some rows of a problem in float32, with the outputs that full precision has there.

    Leaves the block's parameters in float32: call it within `weights_restored`.
    """

    def wide(streams: Sequence[mx.array]) -> tuple[mx.array, ...]:
        return tuple(stream[rows].astype(mx.float32) for stream in streams)

    data, module = problem.data, problem.block.module
    module.update(tree_map(lambda array: array.astype(mx.float32), module.parameters()))
    for linear, weight in zip(problem.linears, problem.weights, strict=True):
        linear.module.weight = weight
    modulation, inputs = wide(problem.modulation), wide(data.inputs)
    every = mx.arange(rows.size)
    targets = run_block(problem.block, modulation, every, inputs, problem.positions)
    targets = targets[: len(data.targets)]
    mx.eval(targets)
    prefix = None if data.prefix is None else wide(data.prefix)
    data = replace(data, inputs=inputs, targets=targets, prefix=prefix)
    return replace(problem, data=data, modulation=modulation)


def quantized_weights(problem: BlockProblem, codes: Sequence[mx.array]) -> list[mx.array]:
    """The values that MLX dequantizes integer codes to, one float32 matrix a linear."""
    return [
        dequantize(pack(code, scales)) for code, scales in zip(codes, problem.scales, strict=True)
    ]
