"""Seconds and bytes of one iteration of learned rounding, on one block of SD3-medium's size.

    .venv/bin/python benchmarks/iteration_time.py [--json benchmarks/results/iteration_time.json]

The block has random weights, and random rows of 1,024 image and 154 text tokens enter it; its
weights get 4 bits in groups of 64. Parts, each printed and written as soon as it is measured:

    block      the block alone: forward, forward and backward of the reconstruction error, and the
               attention and the GELU of the image stream by themselves
    batch-B-P  iterations of `adaround.Learner` at batch B, gradients added up over parts of P rows;
               `unfilled` without the tokens that give attention a fused gradient (CUDA), `+ X GB`
               with MLX's memory limit set to X GB above what the iterations start with
    plain      the same mathematics as commonly written (`plain_adaround.py`)
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
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from plain_adaround import plain_loop, starts  # puts ditquant on the path

from ditquant.backend import describe_device, import_diffusionkit, is_accelerated, mx, nn
from ditquant.models.load import DTYPES
from ditquant.network.blocks import Network
from ditquant.network.diffusionkit import DiffusionKitNetwork
from ditquant.weights import adaround
from ditquant.weights.block_gradients import attention_multiple, cheap_gradients, padded_attention
from ditquant.weights.block_io import BlockData
from ditquant.weights.grids import Grid
from ditquant.weights.reconstruct import (
    BlockProblem,
    block_error,
    block_problem,
    quantized_weights,
    stream_errors,
    weights_restored,
)
from ditquant.weights.roundings import rtn_codes

GRID = Grid("group", 4, 64)
SEED = 0
WARM_UP = 3
# Rows per image: the second image is held out.
ROWS = (16, 4)
SIZES: dict[str, dict[str, int]] = {
    "sd3-medium": {"hidden": 1536, "heads": 24, "image": 1024, "text": 154},
    "demo": {"hidden": 256, "heads": 4, "image": 64, "text": 24},
    "small": {"hidden": 64, "heads": 2, "image": 16, "text": 6},
}
# Batch, and rows of one backward pass (None: all).
LAYOUTS = ((8, None), (8, 4), (8, 2), (16, None), (16, 4), (16, 2))
# GB above what the iterations start with, for MLX's memory limit.
ROOMS = (3.0, 1.5)

Row = dict[str, float]
# A row's name, and what measures it: one part that does not run here does not end the others.
Part = tuple[str, Callable[[], Row]]


# ----------------------------------------------------------------------------------- the block


class OneBlock(nn.Module):
    """An MM-DiT of one block with learned positions, as far as `block_problem` reads it."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.multimodal_transformer_blocks = [block]
        self.x_pos_embedder = nn.Identity()


def build(size: dict[str, int], dtype: mx.Dtype) -> Network:
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
    return DiffusionKitNetwork(OneBlock(block))


def random_data(model: Network, size: dict[str, int], dtype: mx.Dtype) -> BlockData:
    """Noise enters; the targets are what the full-precision block makes of it."""
    keys = mx.random.split(mx.random.key(SEED + 1), 3)
    rows, hidden = sum(ROWS), size["hidden"]
    inputs = tuple(
        mx.random.normal((rows, size[tokens], 1, hidden), dtype=dtype, key=key)
        for tokens, key in zip(("image", "text"), keys, strict=False)
    )
    modulation = mx.random.normal((rows, 1, 1, hidden), dtype=dtype, key=keys[2])
    (block,) = model.blocks
    parts = []
    for start in range(0, rows, 4):
        part = slice(start, start + 4)
        for stream in block.streams.values():
            stream.set_modulation(stream.modulation(modulation[part]))
        parts.append(block([stream[part] for stream in inputs]))
        mx.eval(parts[-1])
    targets = tuple(mx.concatenate(streams) for streams in zip(*parts, strict=True))
    mx.eval(inputs, targets, modulation)
    latent = 2 * round(size["image"] ** 0.5)
    return BlockData(
        inputs, targets, modulation, ROWS, (latent, latent), size["text"], mx.ones((rows,))
    )


# ---------------------------------------------------------------------------------- measuring


def measure(call: Callable[[], Any], repeat: int, warm_up: int = WARM_UP) -> Row:
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


def block_parts(problem: BlockProblem, size: dict[str, int], repeat: int) -> Iterator[Part]:
    """The block without learning, at batch 8."""
    dtype = problem.data.inputs[0].dtype
    rows = mx.array(problem.train[:8])
    weights = [weight.astype(dtype) for weight in problem.weights]

    def error(weights: list[mx.array]) -> mx.array:
        return sum(stream_errors(problem, weights, rows))

    backward = mx.value_and_grad(error)
    with weights_restored(problem):
        yield "block forward", lambda: measure(lambda: error(weights), repeat)
        yield "block forward + backward", lambda: measure(lambda: backward(weights), repeat)
        with cheap_gradients(problem.block):
            yield "  with cheap gradients", lambda: measure(lambda: backward(weights), repeat)


def layer_parts(size: dict[str, int], dtype: mx.Dtype, repeat: int) -> Iterator[Part]:
    """Attention and the image stream's GELU by themselves, forward and backward, at batch 8."""
    tokens, width = size["image"] + size["text"], size["hidden"] // size["heads"]
    qkv = mx.random.normal((3, 8, size["heads"], tokens, width)).astype(dtype)
    mlp = mx.random.normal((8, size["image"], 1, 4 * size["hidden"])).astype(dtype)

    def attend(qkv: mx.array) -> mx.array:
        return padded_attention(*qkv, scale=width**-0.5, multiple=1)

    def attend_filled(qkv: mx.array) -> mx.array:
        return padded_attention(*qkv, scale=width**-0.5, multiple=128)

    def attend_extended(qkv: mx.array) -> mx.array:
        """Filled up without a mask: eight more channels keep the additional keys unseen."""
        extra = -tokens % 128
        q, k, v = (mx.pad(x, [(0, 0), (0, 0), (0, extra), (0, 0)]) for x in qkv)
        unseen = mx.where(mx.arange(tokens + extra) < tokens, 0.0, -30000.0).astype(dtype)
        unseen = mx.broadcast_to(unseen[:, None], (*k.shape[:3], 1))
        q = mx.concatenate([q, mx.full((*q.shape[:3], 8), width**0.5, dtype)], axis=-1)
        k = mx.concatenate([k, unseen, mx.zeros((*k.shape[:3], 7), dtype)], axis=-1)
        v = mx.pad(v, [(0, 0), (0, 0), (0, 0), (0, 8)])
        attended = mx.fast.scaled_dot_product_attention(q, k, v, scale=width**-0.5)
        return attended[:, :, :tokens, :width]

    for name, function, x in (
        ("attention", attend, qkv),
        ("attention filled", attend_filled, qkv),
        ("attention extended", attend_extended, qkv),
        ("GELU", nn.gelu, mlp),
    ):
        slope = mx.grad(lambda x, function=function: (function(x).astype(mx.float32) ** 2).sum())
        yield name, lambda f=slope, x=x: measure(lambda: f(x), repeat)
        if name.startswith("attention "):
            plain = mx.grad(lambda x: (attend(x).astype(mx.float32) ** 2).sum())
            yield f"  error of {name}", lambda f=slope, g=plain: difference(f(qkv), g(qkv))


def difference(one: mx.array, other: mx.array) -> Row:
    """Mean squared difference, relative."""
    one, other = one.astype(mx.float32), other.astype(mx.float32)
    return {"relative_error": (mx.mean((one - other) ** 2) / mx.mean(other**2)).item()}


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
    problem: BlockProblem,
    rtn_error: float,
    options: adaround.Options,
    repeat: int,
    multiple: int | None = None,
    room: float | None = None,
) -> Row:
    """Iterations from the middle of 300: the regulariser is on, the history is kept.

    Args:
        multiple: see `cheap_gradients`.
        room: GB that MLX may take without waiting, above what it has at the start.
    """
    learner = adaround.Learner(problem, starts(problem), options, rtn_error, SEED)
    state = learner.start()
    state.iteration = 100
    mx.eval(state.arrays())
    before = None
    if room is not None:
        before = mx.set_memory_limit(mx.get_active_memory() + int(room * 1e9))
    try:
        with weights_restored(problem), cheap_gradients(problem.block, multiple):
            return measure(lambda: learner.iterate(state), repeat)
    finally:
        if before is not None:
            mx.set_memory_limit(before)


def iteration_parts(problem: BlockProblem, rtn_error: float, repeat: int) -> Iterator[Part]:
    for batch, at_once in LAYOUTS:
        options = options_of(batch, at_once, 300)
        yield (
            f"batch-{batch}-{at_once or batch}",
            lambda options=options: iterations_of(problem, rtn_error, options, repeat),
        )
    whole = options_of(8, None, 300)
    if attention_multiple() > 1:
        yield (
            "batch-8-8 unfilled",
            lambda: iterations_of(problem, rtn_error, whole, repeat, multiple=1),
        )
    for options, room in [(whole, room) for room in ROOMS] + [
        (options_of(16, None, 300), ROOMS[0])
    ]:
        yield (
            f"batch-{options.batch_size}-{options.batch_size} + {room} GB",
            lambda o=options, room=room: iterations_of(problem, rtn_error, o, repeat, room=room),
        )


def errors_of(problem: BlockProblem, codes: list[mx.array]) -> Row:
    weights = quantized_weights(problem, codes)
    return {
        "train": block_error(problem, weights, problem.train),
        "held_out": block_error(problem, weights, problem.held_out),
    }


def comparison(problem: BlockProblem, rtn_error: float, iterations: int) -> Iterator[Part]:
    """The plain loop's cost, and what as many iterations of either make of the block."""
    options = options_of(8, None, iterations)
    loop = plain_loop(problem, options, rtn_error, SEED)
    rounds = iter(range(iterations))
    uncounted = min(2, iterations - 1)

    def learned() -> Row:
        codes = adaround.learn(problem, starts(problem), options, rtn_error, SEED).codes
        return {**errors_of(problem, codes), "iterations": iterations}

    with weights_restored(problem):
        yield (
            "plain",
            lambda: measure(lambda: loop.iterate(next(rounds)), iterations - uncounted, uncounted),
        )
    yield "errors rtn", lambda: errors_of(problem, rtn_codes(problem))
    yield "errors plain", lambda: {**errors_of(problem, loop.codes()), "iterations": iterations}
    yield "errors ours", learned


def parts(size: dict[str, int], dtype: mx.Dtype, repeat: int, compare: int) -> Iterator[Part]:
    """All of the table's rows, one after the other."""
    model = build(size, dtype)
    data = random_data(model, size, dtype)
    problem = block_problem(model, "mm00", data, lambda name: GRID, holdout=0.2)
    rtn_error = block_error(problem, quantized_weights(problem, rtn_codes(problem)), problem.train)
    yield from block_parts(problem, size, repeat)
    yield from iteration_parts(problem, rtn_error, repeat)
    yield from comparison(problem, rtn_error, compare)
    yield from layer_parts(size, dtype, repeat)


def line(name: str, row: Row) -> str:
    """A row of the table."""
    if "train" in row:
        return f"{name:26} train {row['train']:.6g}, held out {row['held_out']:.6g}"
    if "relative_error" in row:
        return f"{name:26} {row['relative_error']:9.1e}"
    numbers = [row["seconds"] * 1e3, row["peak_bytes"] / 1e9, row["active_bytes"] / 1e9]
    times = f"  {row['times_ours']:.2f} x ours" if "times_ours" in row else ""
    return f"{name:26} {numbers[0]:9.2f} ms {numbers[1]:8.3f} GB {numbers[2]:8.3f} GB{times}"


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
    rows: dict[str, Row] = {}
    record = {
        "device": describe_device(),
        "size": {"name": options.size, **size},
        "dtype": dtype,
        "rows": rows,
    }
    for name, measured in parts(size, DTYPES[dtype], options.repeat, options.compare):
        try:
            rows[name] = measured()
        except (RuntimeError, ValueError) as error:
            print(f"{name:26} does not run here: {str(error).splitlines()[0][:100]}", flush=True)
            continue
        if name == "plain" and "batch-8-8" in rows:
            rows[name]["times_ours"] = rows[name]["seconds"] / rows["batch-8-8"]["seconds"]
        print(line(name, rows[name]), flush=True)
        if options.json:
            options.json.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    print(f"{time.perf_counter() - started:.0f} s")
    return record


if __name__ == "__main__":
    main()
