"""Seconds and bytes of one iteration of learned rounding, on one block of SD3-medium's size.

    .venv/bin/python benchmarks/iteration_time.py [--json benchmarks/results/iteration_time.json]

The block has random weights, and random rows of 1,024 image and 154 text tokens enter it; its
weights get 4 bits in groups of 64. Parts, each printed and written as soon as it is measured:

    block      the block alone: forward, forward and backward of the reconstruction error, and the
               attention and the GELU of the image stream by themselves
    batch-B-P  iterations of `adaround.Learner` at batch B, gradients added up over parts of P rows
    plain      the same mathematics as commonly written: each sample of the batch by itself, its
               data copied from the host, weights computed anew from alpha, the loss read back,
               regulariser and Adam operation by operation
    errors     the block's error after as many iterations of either, from the same start

Iterations are timed in a row, after some that are not counted; the host waits once, at the end.
`active` is what stays between iterations (weights, data, Adam's moments), `peak` the most that was
allocated; both count everything in this process.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "scripts"))

from ditquant import adaround  # noqa: E402
from ditquant.backend import (  # noqa: E402
    describe_device,
    import_diffusionkit,
    is_accelerated,
    mx,
    nn,
    to_numpy,
)
from ditquant.block_io import BlockData  # noqa: E402
from ditquant.blocks import call_block, set_modulation, walk_blocks  # noqa: E402
from ditquant.grids import Grid, Scales, steps_of  # noqa: E402
from ditquant.models.load import DTYPES  # noqa: E402
from ditquant.reconstruct import (  # noqa: E402
    BlockProblem,
    block_error,
    block_problem,
    quantized_weights,
    stream_errors,
    weights_restored,
)
from ditquant.rounding import GAMMA, ZETA, hard_codes, start_alpha  # noqa: E402
from ditquant.roundings import rtn_codes  # noqa: E402

GRID = Grid("group", 4, 64)
SEED = 0
WARM_UP = 3
# Rows per image: the second image is held out.
ROWS = (16, 4)
SIZES: dict[str, dict[str, int]] = {
    "sd3-medium": {"hidden": 1536, "heads": 24, "image": 1024, "text": 154},
    "small": {"hidden": 64, "heads": 2, "image": 16, "text": 6},
}
# Batch, and rows of one backward pass (None: all).
LAYOUTS = ((8, None), (8, 4), (8, 2), (16, None), (16, 4), (16, 2))


# ----------------------------------------------------------------------------------- the block


class OneBlock(nn.Module):
    """An MM-DiT of one block with learned positions, as far as `block_problem` reads it."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.multimodal_transformer_blocks = [block]
        self.x_pos_embedder = nn.Identity()


def build(size: dict[str, int], dtype: mx.Dtype) -> OneBlock:
    import_diffusionkit()
    config = importlib.import_module("diffusionkit.mlx.config").MMDiTConfig(
        num_heads=size["heads"],
        depth_multimodal=2,
        hidden_size_override=size["hidden"],
        dtype=dtype,
        float16_dtype=dtype,
        low_memory_mode=False,
    )
    mx.random.seed(SEED)
    block = importlib.import_module("diffusionkit.mlx.mmdit").MultiModalTransformerBlock(config)
    block.set_dtype(dtype)
    mx.eval(block.parameters())
    return OneBlock(block)


def random_data(model: OneBlock, size: dict[str, int], dtype: mx.Dtype) -> BlockData:
    """Noise enters; the targets are what the full-precision block makes of it."""
    keys = mx.random.split(mx.random.key(SEED + 1), 3)
    rows, hidden = sum(ROWS), size["hidden"]
    inputs = tuple(
        mx.random.normal((rows, size[tokens], 1, hidden), dtype=dtype, key=key)
        for tokens, key in zip(("image", "text"), keys, strict=False)
    )
    modulation = mx.random.normal((rows, 1, 1, hidden), dtype=dtype, key=keys[2])
    (block,) = walk_blocks(model)
    parts = []
    for start in range(0, rows, 4):
        part = slice(start, start + 4)
        for stream in block.streams.values():
            set_modulation(stream, stream.adaLN_modulation(modulation[part]))
        parts.append(call_block(block, [stream[part] for stream in inputs]))
        mx.eval(parts[-1])
    targets = tuple(mx.concatenate(streams) for streams in zip(*parts, strict=True))
    mx.eval(inputs, targets, modulation)
    latent = 2 * round(size["image"] ** 0.5)
    return BlockData(
        inputs, targets, modulation, ROWS, (latent, latent), size["text"], mx.ones((rows,))
    )


# ------------------------------------------------------------------------- the loop as it is common


def plain_soft_weight(weight: mx.array, scales: Scales, alpha: mx.array) -> mx.array:
    """scale (clip(floor(W / scale + zero) + h(alpha), 0, levels - 1) - zero), from the start."""
    rows, columns = weight.shape
    scale = mx.repeat(scales.scales.astype(mx.float32), scales.group_size, axis=1)
    zero = mx.repeat(scales.zeros, scales.group_size, axis=1)
    h = mx.clip((ZETA - GAMMA) * mx.sigmoid(alpha) + GAMMA, 0.0, 1.0)
    codes = mx.clip(mx.floor(weight / scale + zero) + h, 0, 2**scales.bits - 1)
    return ((codes - zero) * scale).reshape(rows, columns)


@dataclass
class PlainLoop:
    """AdaRound on a block, sample by sample; the mathematics of `adaround.Learner`.

    Attributes:
        problem, options: what is learned, and how.
        rtn_error: the unit of lambda.
        host: inputs, targets and modulation as numpy arrays, copied to the device when needed.
        alphas, means, squares: rounding variables and Adam's moments.
    """

    problem: BlockProblem
    options: adaround.Options
    rtn_error: float
    host: list[list[np.ndarray]]
    alphas: list[mx.array]
    means: list[mx.array]
    squares: list[mx.array]

    def _loss(
        self, alphas: list[mx.array], sample: list[list[mx.array]], penalty: float, beta: int
    ) -> mx.array:
        """(error + penalty * regulariser) * loss scale of one sample."""
        problem = self.problem
        inputs, targets, modulation = sample
        softs = [
            plain_soft_weight(*three)
            for three in zip(problem.weights, problem.scales, alphas, strict=True)
        ]
        for linear, soft in zip(problem.linears, softs, strict=True):
            linear.module.weight = soft.astype(inputs[0].dtype)
        for stream, parameters in zip(problem.block.streams.values(), modulation, strict=True):
            set_modulation(stream, parameters)
        outputs = call_block(problem.block, inputs, problem.positions)
        loss = mx.array(0.0)
        for output, target, energy in zip(outputs, targets, problem.energies, strict=True):
            difference = output.astype(mx.float32) - target.astype(mx.float32)
            loss = loss + mx.mean(difference**2) / energy / len(outputs)
        if penalty:
            for alpha in alphas:
                h = mx.clip((ZETA - GAMMA) * mx.sigmoid(alpha) + GAMMA, 0.0, 1.0)
                loss = loss + penalty * mx.sum(1 - mx.abs(2 * h - 1) ** beta)
        return loss * self._loss_scale

    @property
    def _loss_scale(self) -> float:
        return adaround.loss_scale(self.problem, 1)

    def iterate(self, iteration: int) -> float:
        """One iteration over a batch; returns its loss."""
        options, problem = self.options, self.problem
        warmup = options.warmup * options.iterations
        progress = (iteration - warmup) / (options.iterations - warmup)
        count = sum(weight.size for weight in problem.weights)
        penalty = options.regularizer * self.rtn_error / count if progress >= 0 else 0.0
        beta = adaround.annealed_beta(max(progress, 0.0))
        rows = adaround.batch_rows(problem, options.batch_size, SEED, iteration)
        slope_of = mx.value_and_grad(self._loss)
        slopes = [mx.zeros_like(alpha) for alpha in self.alphas]
        total = 0.0
        for row in rows:
            sample = [[mx.array(array[row : row + 1]) for array in kind] for kind in self.host]
            loss, own = slope_of(self.alphas, sample, penalty, beta)
            slopes = [one + other for one, other in zip(slopes, own, strict=True)]
            total += loss.item() / self._loss_scale / len(rows)
            mx.eval(slopes)
        self._adam([slope / (self._loss_scale * len(rows)) for slope in slopes], iteration + 1)
        return total

    def _adam(self, slopes: list[mx.array], step: int) -> None:
        keep_mean, keep_square = adaround.ADAM_DECAY
        for index, slope in enumerate(slopes):
            mean = keep_mean * self.means[index] + (1 - keep_mean) * slope
            square = keep_square * self.squares[index] + (1 - keep_square) * slope**2
            root = mx.sqrt(square / (1 - keep_square**step)) + adaround.ADAM_EPSILON
            moved = self.options.learning_rate * mean / (1 - keep_mean**step) / root
            self.alphas[index] = self.alphas[index] - moved
            self.means[index], self.squares[index] = mean, square
        mx.eval(self.alphas, self.means, self.squares)

    def codes(self) -> list[mx.array]:
        return [
            hard_codes(steps, alpha, 2**scales.bits)
            for steps, alpha, scales in zip(
                starts(self.problem), self.alphas, self.problem.scales, strict=True
            )
        ]


def plain_loop(problem: BlockProblem, options: adaround.Options, rtn_error: float) -> PlainLoop:
    data = problem.data
    host = [
        [to_numpy(array) for array in kind]
        for kind in (data.inputs, data.targets, problem.modulation)
    ]
    alphas = [start_alpha(steps) for steps in starts(problem)]
    zeros = [[mx.zeros_like(alpha) for alpha in alphas] for _ in range(2)]
    mx.eval(alphas, zeros)
    return PlainLoop(problem, options, rtn_error, host, alphas, *zeros)


# ---------------------------------------------------------------------------------- measuring


def starts(problem: BlockProblem) -> list[mx.array]:
    """W / scale + zero of each linear."""
    return [
        steps_of(weight, scales)
        for weight, scales in zip(problem.weights, problem.scales, strict=True)
    ]


def measure(call: Callable[[], Any], repeat: int, warm_up: int = WARM_UP) -> dict[str, float]:
    """Seconds a call, and what the calls left and took of the device's memory."""
    gc.collect()
    mx.clear_cache()
    mx.reset_peak_memory()
    for _ in range(warm_up):
        mx.eval(call())
    mx.synchronize()
    start = time.perf_counter()
    for _ in range(repeat):
        mx.async_eval(call())
    mx.synchronize()
    seconds = (time.perf_counter() - start) / repeat
    gc.collect()
    return {
        "seconds": seconds,
        "peak_bytes": mx.get_peak_memory(),
        "active_bytes": mx.get_active_memory(),
    }


def block_parts(
    problem: BlockProblem, size: dict[str, int], repeat: int
) -> Iterator[tuple[str, dict[str, float]]]:
    """The block without learning, at batch 8."""
    dtype = problem.data.inputs[0].dtype
    rows = mx.array(problem.train[:8])
    weights = [weight.astype(dtype) for weight in problem.weights]
    scale = adaround.loss_scale(problem, 8)

    def error(weights: list[mx.array]) -> mx.array:
        return scale * sum(stream_errors(problem, weights, rows))

    with weights_restored(problem):
        yield "block forward", measure(lambda: error(weights), repeat)
        backward = mx.value_and_grad(error)
        yield "block forward + backward", measure(lambda: backward(weights), repeat)

    tokens, width = size["image"] + size["text"], size["hidden"] // size["heads"]
    heads = mx.random.normal((3, 8, size["heads"], tokens, width)).astype(dtype)
    mlp = mx.random.normal((8, size["image"], 1, 4 * size["hidden"])).astype(dtype)

    def attend(qkv: mx.array) -> mx.array:
        return mx.fast.scaled_dot_product_attention(*qkv, scale=width**-0.5)

    def activate(x: mx.array) -> mx.array:
        return nn.gelu(x)

    for name, function, x in (("attention", attend, heads), ("GELU", activate, mlp)):
        slope = mx.grad(lambda x, function=function: function(x).astype(mx.float32).sum())
        yield f"{name} forward", measure(lambda f=function, x=x: f(x), repeat)
        yield f"{name} forward + backward", measure(lambda f=slope, x=x: f(x), repeat)


def options_of(batch: int, at_once: int | None, iterations: int) -> adaround.Options:
    return adaround.Options(
        iterations=iterations,
        batch_size=batch,
        learning_rate=0.04,
        regularizer=1000.0,
        warmup=0.2,
        rows_at_once=at_once,
    )


def iterations_of(
    problem: BlockProblem, rtn_error: float, batch: int, at_once: int | None, repeat: int
) -> dict[str, float]:
    """Iterations from the middle of 300: the regulariser is on, the history is kept."""
    options = options_of(batch, at_once, 300)
    learner = adaround.Learner(problem, starts(problem), options, rtn_error, SEED)
    state = learner.start()
    state.iteration = 100

    with weights_restored(problem):
        return measure(lambda: learner.iterate(state), repeat)


def errors_of(problem: BlockProblem, codes: list[mx.array]) -> dict[str, float]:
    weights = quantized_weights(problem, codes)
    return {
        "train": block_error(problem, weights, problem.train),
        "held_out": block_error(problem, weights, problem.held_out),
    }


def comparison(
    problem: BlockProblem, rtn_error: float, iterations: int, batch: int = 8
) -> Iterator[tuple[str, dict[str, float]]]:
    """The plain loop's cost, and what as many iterations of either make of the block."""
    options = options_of(batch, None, iterations)
    loop = plain_loop(problem, options, rtn_error)
    rounds = iter(range(iterations))
    uncounted = min(2, iterations - 1)
    with weights_restored(problem):
        row = measure(lambda: loop.iterate(next(rounds)), iterations - uncounted, uncounted)
    yield "plain", row
    plain = errors_of(problem, loop.codes())
    codes, _ = adaround.learn(problem, starts(problem), options, rtn_error, SEED)
    rtn = errors_of(problem, rtn_codes(problem))
    for name, errors in (("rtn", rtn), ("plain", plain), ("ours", errors_of(problem, codes))):
        yield f"errors {name}", {**errors, "iterations": 0 if name == "rtn" else iterations}


def line(name: str, row: dict[str, float]) -> str:
    """A row of the table."""
    if "seconds" not in row:
        return f"{name:26} train {row['train']:.6g}, held out {row['held_out']:.6g}"
    numbers = [row["seconds"] * 1e3, row["peak_bytes"] / 1e9, row["active_bytes"] / 1e9]
    times = f"  {row['times_ours']:.2f} x ours" if "times_ours" in row else ""
    return f"{name:26} {numbers[0]:9.2f} ms {numbers[1]:8.3f} GB {numbers[2]:8.3f} GB{times}"


def parts(
    size: dict[str, int], dtype: mx.Dtype, repeat: int, compare: int
) -> Iterator[tuple[str, dict[str, float]]]:
    """All of the table's rows, one after the other."""
    model = build(size, dtype)
    data = random_data(model, size, dtype)
    problem = block_problem(model, "mm00", data, lambda name: GRID, holdout=0.2)
    rtn_error = block_error(problem, quantized_weights(problem, rtn_codes(problem)), problem.train)
    yield from block_parts(problem, size, repeat)
    ours = 0.0
    for batch, at_once in LAYOUTS:
        row = iterations_of(problem, rtn_error, batch, at_once, repeat)
        ours = ours or row["seconds"]
        yield f"batch-{batch}-{at_once or batch}", row
    for name, row in comparison(problem, rtn_error, compare):
        yield name, {**row, "times_ours": row["seconds"] / ours} if "seconds" in row else row


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description="Seconds and bytes of an AdaRound iteration.")
    parser.add_argument("--size", choices=SIZES, default="sd3-medium")
    parser.add_argument("--dtype", choices=DTYPES, help="float16; float32 on a CPU")
    parser.add_argument("--repeat", type=int, default=20, help="iterations that are timed")
    parser.add_argument("--compare", type=int, default=8, help="iterations of the plain loop")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args(arguments)

    dtype = options.dtype or ("float16" if is_accelerated() else "float32")
    size = SIZES[options.size]
    started = time.perf_counter()
    print(describe_device())
    print(f"a block of {options.size}, {dtype}, 4 bits in groups of {GRID.group_size}")
    print(f"{'':26} {'time':>12} {'peak':>11} {'active':>11}", flush=True)
    rows: dict[str, dict[str, float]] = {}
    record = {
        "device": describe_device(),
        "size": {"name": options.size, **size},
        "dtype": dtype,
        "rows": rows,
    }
    for name, row in parts(size, DTYPES[dtype], options.repeat, options.compare):
        rows[name] = row
        print(line(name, row), flush=True)
        if options.json:
            options.json.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    print(f"{time.perf_counter() - started:.0f} s")
    return record


if __name__ == "__main__":
    main()
