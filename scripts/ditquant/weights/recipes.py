"""One block by one recipe: choose codes, judge them on held-out rows, keep the better ones.

A rounding proposes codes; nothing is taken on trust. The proposal is kept only if the block's
hard error on rows that nothing was learned from is below that of its start (GPTQ, if the recipe
starts there) and of round-to-nearest on the same grid, else the block keeps the best of those and
its result says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..backend import mx
from ..planning.layer_bits import layer_bits
from ..statistics.input_statistics import Statistics
from .block_balance import balanced_block
from .grids import Grid, Packed, pack
from .reconstruct import BlockProblem, block_error, quantized_weights, weights_restored
from .roundings import ROUNDINGS, Proposal, Task, rtn_codes


@dataclass(frozen=True)
class Errors:
    """Block error (`reconstruct.block_error`) on the training rows and on the held-out rows."""

    train: float
    held_out: float


@dataclass(frozen=True)
class Candidate:
    """Codes that a block may keep.

    Attributes:
        name: of the rounding.
        proposal: the codes and their grids.
        errors: what they do to the block's output.
        parameters: what balancing changed beside the quantized weights, by path inside the block.
    """

    name: str
    proposal: Proposal
    errors: Errors
    parameters: Mapping[str, mx.array]


@dataclass(frozen=True)
class BlockResult:
    """A quantized block.

    Attributes:
        packed: linear's name -> its quantized weight.
        parameters: module path in the MMDiT -> a full-precision parameter that balancing changed.
        activations: input's name -> (step, zero), learned (TaQ-DiT).
        document: the JSON payload, format "ditquant.block_result".
    """

    packed: dict[str, Packed]
    parameters: dict[str, mx.array]
    activations: dict[str, tuple[float, float]]
    document: dict[str, Any]


def balance_kind(recipe: Mapping[str, Any]) -> str:
    """How a recipe balances; AWQ is a search for scales by definition."""
    kind: str = recipe["balance"]
    return "awq" if recipe["rounding"] == "awq" and kind == "none" else kind


def recipe_grid(recipe: Mapping[str, Any]) -> Callable[[str], Grid | None]:
    """Linear's name -> its grid by a recipe; None for one that `layers` leaves alone."""

    def grid_of(name: str) -> Grid | None:
        bits = layer_bits(recipe, name)
        if bits == "full":
            return None
        return Grid(recipe["grid"], int(bits), recipe["group_size"])

    return grid_of


def _judged(
    name: str,
    problem: BlockProblem,
    proposal: Proposal,
    parameters: Mapping[str, mx.array] | None = None,
) -> Candidate:
    own = replace(problem, scales=proposal.scales)
    weights = quantized_weights(own, proposal.codes)
    errors = Errors(
        block_error(own, weights, problem.train), block_error(own, weights, problem.held_out)
    )
    return Candidate(name, proposal, errors, parameters or {})


def _linear_rows(problem: BlockProblem, proposal: Proposal) -> dict[str, dict[str, Any]]:
    """Weight error of each linear: relative mean square, and the same as SQNR in dB."""
    rows = {}
    values = quantized_weights(replace(problem, scales=proposal.scales), proposal.codes)
    for linear, weight, value, scales in zip(
        problem.linears, problem.weights, values, proposal.scales, strict=True
    ):
        power = mx.mean(weight**2)
        error = (mx.mean((value - weight) ** 2) / mx.maximum(power, 1e-30)).item()
        sqnr = -10 * mx.log10(mx.array(max(error, 1e-30))).item()
        rows[linear.name] = {
            "shape": list(weight.shape),
            "bits": scales.bits,
            "weight_error": error,
            "weight_sqnr_db": sqnr,
        }
    return rows


def quantize_block(
    problem: BlockProblem,
    recipe: Mapping[str, Any],
    seed: int,
    statistics: Statistics | None = None,
    resume: Path | None = None,
    key: str = "",
) -> BlockResult:
    """Quantizes a block by a recipe and measures what that did to its output.

    Args:
        recipe: a validated entry of the configuration's `recipes`.
        statistics: of the activations, for `balance: smoothquant` and `csb`.
        resume, key: see `roundings.Task`.
    """
    with weights_restored(problem):
        nearest = Proposal(rtn_codes(problem), problem.scales)
        rtn = _judged("rtn", problem, nearest)
        candidates, balancing = [rtn], {}
        prepared, parameters = problem, None
        # `layers` may leave a whole block alone: there is nothing to choose then.
        has_choice = bool(problem.linears)
        if has_choice and balance_kind(recipe) != "none":
            bits = recipe.get("activation_bits")
            balanced = balanced_block(problem, balance_kind(recipe), bits, statistics, seed)
            prepared, parameters, balancing = balanced.problem, balanced.parameters, balanced.record
        task = Task(prepared, recipe, seed, rtn.errors.train, resume, key)
        if has_choice and (recipe["rounding"] != "rtn" or parameters is not None):
            if recipe.get("start") == "gptq":
                start = ROUNDINGS["gptq"](task)
                candidates.append(_judged("gptq", prepared, start, parameters))
            proposal = ROUNDINGS[recipe["rounding"]](task)
            name = recipe["rounding"] if recipe["rounding"] != "rtn" else "balanced-rtn"
            candidates.append(_judged(name, prepared, proposal, parameters))
        last = candidates[-1]
        # Of equal ones the first: nothing is changed that does not gain from it.
        kept = min(candidates, key=lambda one: one.errors.held_out)
        judged = problem if kept is rtn else prepared
        return BlockResult(
            _packed(judged, kept.proposal),
            {f"{problem.block.path}.{path}": array for path, array in kept.parameters.items()},
            {
                name: (quantizer.step.item(), quantizer.zero)
                for name, quantizer in (kept.proposal.activations or {}).items()
            },
            {
                "block": problem.block.name,
                "recipe": dict(recipe),
                "seed": seed,
                "rows": {"train": len(problem.train), "held_out": len(problem.held_out)},
                "hard_error": {
                    "rtn": vars(rtn.errors),
                    **{one.name: vars(one.errors) for one in candidates[1:-1]},
                    "result": vars(last.errors),
                },
                "accepted": kept is last,
                "kept": kept.name,
                "kept_error": vars(kept.errors),
                "binary_share": last.proposal.binary_share,
                "balance": balancing,
                "linears": _linear_rows(judged, kept.proposal),
                "loss_scale": last.proposal.loss_scale,
                "history": list(last.proposal.history),
            },
        )


def _packed(problem: BlockProblem, proposal: Proposal) -> dict[str, Packed]:
    return {
        linear.name: pack(code, scales)
        for linear, code, scales in zip(
            problem.linears, proposal.codes, proposal.scales, strict=True
        )
    }
