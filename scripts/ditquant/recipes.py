"""One block by one recipe: choose codes, judge them on held-out rows, keep the better ones.

A rounding proposes codes; nothing is taken on trust. The proposal is kept only if the block's
hard error on rows that nothing was learned from is below that of round-to-nearest on the same
grid, else the block keeps round-to-nearest and its result says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import adaround
from .backend import mx
from .grids import Grid, Packed, pack, steps_of
from .reconstruct import BlockProblem, block_error, quantized_weights
from .rounding import nearest_codes


@dataclass(frozen=True)
class Errors:
    """Block error (`reconstruct.block_error`) on the training rows and on the held-out rows."""

    train: float
    held_out: float


@dataclass(frozen=True)
class Proposal:
    """What a rounding proposes for a block.

    Attributes:
        codes: one (outputs, inputs) matrix of integers a linear.
        binary_share: share of the rounding variables that ended at 0 or 1; None if it has none.
        history: of the learning.
    """

    codes: list[mx.array]
    binary_share: float | None = None
    history: tuple[dict[str, float], ...] = ()


@dataclass(frozen=True)
class Run:
    """Beside the recipe: what a rounding needs of the job.

    Attributes:
        seed: of everything random.
        rtn: errors of round-to-nearest.
        resume: file that keeps the state of an interrupted job, or None.
        key: names the job that may continue from it.
    """

    seed: int
    rtn: Errors
    resume: Path | None = None
    key: str = ""


@dataclass(frozen=True)
class BlockResult:
    """A quantized block.

    Attributes:
        packed: linear's name -> its quantized weight.
        document: the JSON payload, format "ditquant.block_result".
    """

    packed: dict[str, Packed]
    document: dict[str, Any]


def recipe_grid(recipe: Mapping[str, Any]) -> Grid:
    return Grid(recipe["grid"], recipe["bits"], recipe["group_size"])


def rtn_codes(problem: BlockProblem) -> list[mx.array]:
    """Round-to-nearest codes of each linear."""
    return [
        nearest_codes(steps_of(weight, scales), problem.levels)
        for weight, scales in zip(problem.weights, problem.scales, strict=True)
    ]


def _adaround(problem: BlockProblem, recipe: Mapping[str, Any], run: Run) -> Proposal:
    options = adaround.Options(
        iterations=recipe["iterations"],
        batch_size=recipe["batch_size"],
        learning_rate=recipe["learning_rate"],
        regularizer=recipe["regularizer"],
        warmup=recipe["warmup"],
    )
    codes, state = adaround.learn(
        problem, options, run.rtn.train, run.seed, resume=run.resume, key=run.key
    )
    return Proposal(codes, state.history[-1]["binary_share"], tuple(state.history))


# A rounding that improves on round-to-nearest, by its name in the configuration.
ROUNDINGS: dict[str, Callable[[BlockProblem, Mapping[str, Any], Run], Proposal]] = {
    "adaround": _adaround,
}


def _errors(problem: BlockProblem, codes: list[mx.array]) -> Errors:
    weights = quantized_weights(problem, codes)
    return Errors(
        block_error(problem, weights, problem.train),
        block_error(problem, weights, problem.held_out),
    )


def _linear_rows(problem: BlockProblem, codes: list[mx.array]) -> dict[str, dict[str, Any]]:
    """Weight error of each linear: relative mean square, and the same as SQNR in dB."""
    rows = {}
    values = quantized_weights(problem, codes)
    for linear, weight, value in zip(problem.linears, problem.weights, values, strict=True):
        power = mx.mean(weight**2)
        error = (mx.mean((value - weight) ** 2) / mx.maximum(power, 1e-30)).item()
        sqnr = -10 * mx.log10(mx.array(max(error, 1e-30))).item()
        rows[linear.name] = {
            "shape": list(weight.shape),
            "weight_error": error,
            "weight_sqnr_db": sqnr,
        }
    return rows


def quantize_block(
    problem: BlockProblem,
    recipe: Mapping[str, Any],
    seed: int,
    resume: Path | None = None,
    key: str = "",
) -> BlockResult:
    """Quantizes a block by a recipe and measures what that did to its output.

    Args:
        recipe: a validated entry of the configuration's `recipes`.
        resume, key: see `Run`.
    """
    nearest = rtn_codes(problem)
    rtn = _errors(problem, nearest)
    codes, errors, proposal, accepted = nearest, rtn, Proposal(nearest), True
    if recipe["rounding"] != "rtn":
        proposal = ROUNDINGS[recipe["rounding"]](problem, recipe, Run(seed, rtn, resume, key))
        errors = _errors(problem, proposal.codes)
        accepted = errors.held_out < rtn.held_out
        codes = proposal.codes if accepted else nearest
    packed = {
        linear.name: pack(code, scales)
        for linear, code, scales in zip(problem.linears, codes, problem.scales, strict=True)
    }
    document = {
        "block": problem.block.name,
        "recipe": dict(recipe),
        "seed": seed,
        "rows": {"train": len(problem.train), "held_out": len(problem.held_out)},
        "hard_error": {"rtn": vars(rtn), "result": vars(errors)},
        "accepted": accepted,
        "kept": recipe["rounding"] if accepted else "rtn",
        "binary_share": proposal.binary_share,
        "linears": _linear_rows(problem, codes),
        "history": list(proposal.history),
    }
    return BlockResult(packed, document)
