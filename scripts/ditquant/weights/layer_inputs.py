"""What the linears of a block read: second moments for GPTQ and AWQ, samples for searches.

Taken in forward passes of the block with its full-precision weights, on the streams that will
enter it. Linears that read the same array (query, key and value of a stream) share one entry.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..backend import mx
from ..finite import check_finite
from ..network.blocks import Linear, shared_input, tapped
from .block_io import in_parts, run_block
from .gptq import moment
from .reconstruct import BlockProblem

_ROWS_AT_ONCE = 16


def _passes(problem: BlockProblem, rows: np.ndarray) -> Iterator[dict[str, mx.array]]:
    """Inputs of the block's linears by `shared_input`, some rows at a time."""
    for some in in_parts(rows, _ROWS_AT_ONCE):
        part = mx.array(some)
        seen: dict[str, mx.array] = {}

        def note(linear: Linear, x: mx.array, seen: dict[str, mx.array] = seen) -> None:
            seen.setdefault(shared_input(linear), x)

        with tapped(problem.block.linears, note):
            inputs = [stream[part] for stream in problem.data.entering]
            block, modulation = problem.block, problem.modulation
            mx.eval(run_block(block, modulation, part, inputs, problem.positions), seen)
        named = {f"the inputs of {name}": x for name, x in seen.items()}
        check_finite(named, "on cached streams")
        yield seen


def second_moments(problem: BlockProblem, rows: np.ndarray) -> dict[str, np.ndarray]:
    """`shared_input` -> sum over tokens of x x^T, (channels, channels) float64.

    Args:
        rows: indices of the rows that are summed over.
    """
    totals: dict[str, np.ndarray] = {}
    for seen in _passes(problem, rows):
        for name, x in seen.items():
            one = moment(x)
            totals[name] = totals[name] + one if name in totals else one
    return totals


def sampled_inputs(
    problem: BlockProblem, rows: np.ndarray, tokens: int, seed: int
) -> dict[str, mx.array]:
    """`shared_input` -> (tokens, channels) float32, drawn from all tokens of `rows`.

    Args:
        tokens: how many; fewer if there are fewer.
    """
    rng = np.random.default_rng(seed)
    share = max(1, -(-tokens * _ROWS_AT_ONCE // max(len(rows), 1)))
    kept: dict[str, list[mx.array]] = {}
    for seen in _passes(problem, rows):
        for name, x in seen.items():
            flat = x.reshape(-1, x.shape[-1]).astype(mx.float32)
            chosen = np.sort(rng.permutation(len(flat))[:share])
            kept.setdefault(name, []).append(flat[mx.array(chosen)])
    samples = {name: mx.concatenate(parts)[:tokens] for name, parts in kept.items()}
    mx.eval(samples)
    return samples
