"""One block by one recipe: choose codes, judge them on held-out rows, keep the better ones.

A rounding proposes codes. The block keeps them only if their error on held-out rows is below that
of its start (GPTQ, if the recipe starts there) and of round-to-nearest on the same grid. Otherwise
it keeps the best of these, and its result says so. A proposal that diverged (`divergence`) is never
kept, whatever its error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..activations.input_statistics import Statistics
from ..backend import mx
from ..planning.recipes import Learned, Recipe
from .balance_search import Choice, balanced_block
from .divergence import Diverged, check_error, check_finite
from .grids import Packed, dequantize, pack
from .learning import Resume
from .reconstruct import BlockProblem, block_error, quantized_weights, weights_restored
from .roundings import ROUNDINGS, Proposal, Task, nearest_of, rtn_codes


@dataclass(frozen=True)
class Errors:
    """Block error (`reconstruct.block_error`) on the training rows and on the held-out rows."""

    train: float
    held_out: float


@dataclass(frozen=True)
class Judged:
    """A proposal that a block may keep, and its errors.

    Attributes:
        name: of the rounding.
        problem: the block on the grids of the proposal.
        proposal: the codes and their grids.
        errors: what they do to the block's output.
        parameters: what balancing changed beside the quantized weights, by path inside the block.
    """

    name: str
    problem: BlockProblem
    proposal: Proposal
    errors: Errors
    parameters: Mapping[str, mx.array]

    def packed(self) -> dict[str, Packed]:
        """Linear's name -> its quantized weight."""
        parts = (self.problem.linears, self.proposal.codes, self.problem.scales)
        return {one.name: pack(code, scales) for one, code, scales in zip(*parts, strict=True)}

    def linear_rows(self) -> dict[str, dict[str, Any]]:
        """Weight error of each linear: relative mean square, and the same as SQNR in dB."""
        rows, problem = {}, self.problem
        for linear, weight, packed in zip(
            problem.linears, problem.weights, self.packed().values(), strict=True
        ):
            power = mx.maximum(mx.mean(weight**2), 1e-30)
            error = (mx.mean((dequantize(packed) - weight) ** 2) / power).item()
            rows[linear.name] = {
                "shape": list(weight.shape),
                "bits": packed.bits,
                "weight_error": error,
                "weight_sqnr_db": -10 * mx.log10(mx.array(max(error, 1e-30))).item(),
            }
        return rows


@dataclass(frozen=True)
class BlockResult:
    """A quantized block.

    Attributes:
        packed: linear's name -> its quantized weight.
        parameters: module path in the MMDiT -> a full-precision parameter that balancing changed.
        activations: input's name -> (step size, zero), learned (TaQ-DiT).
        document: the JSON payload, format "ditquant.block_result".
    """

    packed: dict[str, Packed]
    parameters: dict[str, mx.array]
    activations: dict[str, tuple[float, float]]
    document: dict[str, Any]


def _judged(
    name: str,
    problem: BlockProblem,
    proposal: Proposal,
    parameters: Mapping[str, mx.array],
) -> Judged:
    """Raises:
    Diverged: with these weights the block's output is not finite.
    """
    own = replace(problem, scales=proposal.scales)
    weights = quantized_weights(own, proposal.codes)
    errors = Errors(
        block_error(own, weights, problem.train), block_error(own, weights, problem.held_out)
    )
    check_finite(vars(errors).values(), name, f"block {problem.block.name}")
    return Judged(name, own, proposal, errors, parameters)


def _check_learned(result: Judged, others: Sequence[Judged]) -> None:
    """Compares what was learned with its start.

    Raises:
        Diverged: see `divergence.check_error`.
    """
    starts, problem = result.proposal.starts, result.problem
    known = max(one.errors.train for one in others)
    if starts is None or result.errors.train <= known:
        return
    codes = nearest_of(problem, starts)
    start = block_error(problem, quantized_weights(problem, codes), problem.train)
    check_error(result.errors.train, max(start, known))


def _tried(
    task: Task[Recipe], parameters: Mapping[str, mx.array], judged: list[Judged]
) -> tuple[Judged | None, Diverged | None]:
    """Tries the recipe's rounding; what the block may keep joins `judged`.

    Returns:
        What the rounding came to, if it came to codes, and how it diverged, if it did.
    """
    recipe, problem = task.recipe, task.problem
    result = None
    try:
        if isinstance(recipe, Learned) and recipe.start == "gptq":
            start = ROUNDINGS["gptq"](task)
            judged.append(_judged("gptq", problem, start, parameters))
        proposal = ROUNDINGS[recipe.rounding](task)
        name = recipe.rounding if recipe.rounding != "rtn" else "balanced-rtn"
        result = _judged(name, problem, proposal, parameters)
        _check_learned(result, judged)
    except Diverged as error:
        return result, error
    judged.append(result)
    return result, None


def _balancing(choices: Mapping[str, Choice]) -> dict[str, dict[str, Any]]:
    """Fold's name -> {"chosen", "errors"} of the search."""
    return {
        name: {
            "chosen": choice.key,
            "errors": {str(key): error for key, error in choice.errors.items()},
        }
        for name, choice in choices.items()
    }


def quantize_block(
    problem: BlockProblem,
    recipe: Recipe,
    seed: int,
    statistics: Statistics | None = None,
    resume: Resume | None = None,
) -> BlockResult:
    """Quantizes a block by a recipe and measures what that did to its output.

    Args:
        statistics: of the activations, for `balance: smoothquant` and `csb`.
        resume: see `roundings.Task`.
    """
    with weights_restored(problem):
        rtn = _judged("rtn", problem, Proposal(rtn_codes(problem), problem.scales), {})
        judged = [rtn]
        result: Judged | None = rtn
        diverged: Diverged | None = None
        prepared = problem
        parameters: dict[str, mx.array] = {}
        choices: dict[str, Choice] = {}
        # `layers` may leave a whole block alone: there is nothing to choose then.
        is_balanced = bool(problem.linears) and recipe.balance_kind != "none"
        if is_balanced:
            balanced = balanced_block(
                problem, recipe.balance_kind, recipe.activation_bits, statistics, seed
            )
            prepared, parameters, choices = balanced.problem, balanced.parameters, balanced.choices
        if problem.linears and (recipe.rounding != "rtn" or is_balanced):
            task = Task(prepared, recipe, seed, rtn.errors.train, resume)
            result, diverged = _tried(task, parameters, judged)
        # Of equal ones the first: nothing is changed that does not gain from it.
        kept = min(judged, key=lambda one: one.errors.held_out)
        proposal = result.proposal if result else None
        return BlockResult(
            kept.packed(),
            {f"{problem.block.path}.{path}": array for path, array in kept.parameters.items()},
            {
                name: (quantizer.step_size.item(), quantizer.zero)
                for name, quantizer in (kept.proposal.activations or {}).items()
            },
            {
                "block": problem.block.name,
                "recipe": recipe.params(),
                "seed": seed,
                "rows": {"train": len(problem.train), "held_out": len(problem.held_out)},
                "hard_error": {
                    "rtn": vars(rtn.errors),
                    **{one.name: vars(one.errors) for one in judged[1:] if one is not result},
                    **({"result": vars(result.errors)} if result else {}),
                },
                "accepted": kept is result,
                "diverged": diverged.record() if diverged else None,
                "kept": kept.name,
                "kept_error": vars(kept.errors),
                "binary_share": proposal and proposal.binary_share,
                "balance": _balancing(choices),
                "linears": kept.linear_rows(),
                "loss_scale": proposal and proposal.loss_scale,
                "history": list(proposal.history) if proposal else diverged and diverged.history,
            },
        )
