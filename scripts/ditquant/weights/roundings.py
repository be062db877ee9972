"""The roundings: ways to choose codes for a block, one for each kind of recipe.

Each gets a `Task` and proposes codes; `quantize_block` judges them. A recipe may first clip the
grids' ranges, and a learned rounding may start from GPTQ's weights instead of W. A new rounding is
a dataclass in `planning.recipes` and a function here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy as np

from ..backend import mx
from ..network.blocks import shared_input
from ..planning.recipes import AdaRound, Awq, Gptq, Learned, Recipe, Rtn, TaqDit
from . import adaround
from .gptq import Factor, factorize, gptq_codes
from .grids import Grid, Scales, fit_scales, fractional_codes, nearest_codes
from .layer_inputs import sampled_inputs, second_moments
from .learning import Resume
from .lsq import ActivationQuantizer, Joint, range_quantizer
from .reconstruct import BlockProblem

# Tokens from which the starting range of an activation quantizer is read.
_RANGE_TOKENS = 8192
# Ranges that are tried beside the whole one: down to a half.
SHRINK = tuple(round(1.0 - 0.05 * step, 2) for step in range(1, 11))

Kind = TypeVar("Kind", bound=Recipe)


@dataclass(frozen=True)
class Proposal:
    """What a rounding proposes for a block.

    Attributes:
        codes: one (outputs, inputs) matrix of integers a linear.
        scales: the grid over each linear that the codes are for.
        binary_share: share of the rounding variables that ended at 0 or 1; None if it has none.
        history: of the learning.
        activations: learned activation quantizers by `blocks.shared_input`.
        loss_scale: of the learning, if it was in float16 (`loss_scale.LossScale.finished`).
        starts: fractional codes that a learning started from, on `scales`.
    """

    codes: list[mx.array]
    scales: tuple[Scales, ...]
    binary_share: float | None = None
    history: tuple[dict[str, float], ...] = ()
    activations: Mapping[str, ActivationQuantizer] | None = None
    loss_scale: Mapping[str, float] | None = None
    starts: list[mx.array] | None = None


@dataclass(frozen=True)
class Task(Generic[Kind]):
    """A block, and what a rounding needs to know beside it.

    Attributes:
        problem: the block, balanced if the recipe says so.
        recipe: of the rounding's kind.
        seed: of everything random.
        rtn_error: of round-to-nearest on the training rows.
        resume: where the state of an interrupted job is kept, or None.
    """

    problem: BlockProblem
    recipe: Kind
    seed: int
    rtn_error: float
    resume: Resume | None = None

    @cached_property
    def moments(self) -> dict[str, np.ndarray]:
        """`shared_input` -> sum of x x^T over the training rows."""
        return second_moments(self.problem, self.problem.train)

    @cached_property
    def factors(self) -> dict[str, Factor]:
        """The moments factorised for GPTQ."""
        recipe = self.recipe
        assert isinstance(recipe, Gptq | Learned)
        assert recipe.damping is not None
        return {
            name: factorize(matrix, recipe.damping, name) for name, matrix in self.moments.items()
        }


def _fractional(problem: BlockProblem) -> list[mx.array]:
    pairs = zip(problem.weights, problem.scales, strict=True)
    return [fractional_codes(weight, scales) for weight, scales in pairs]


def nearest_of(problem: BlockProblem, fractional: list[mx.array]) -> list[mx.array]:
    """Fractional codes of each linear rounded to nearest."""
    pairs = zip(fractional, problem.scales, strict=True)
    return [nearest_codes(codes, scales.bits) for codes, scales in pairs]


def rtn_codes(problem: BlockProblem) -> list[mx.array]:
    """Round-to-nearest codes of each linear."""
    return nearest_of(problem, _fractional(problem))


def clipped_scales(
    weight: mx.array, grid: Grid, second_moment: np.ndarray, name: str = "The layer"
) -> Scales:
    """The grid over W whose ranges are clipped where that lowers the error of W x.

    The few largest weights of a group set its step. A smaller range makes all others finer and
    costs the large ones, which pays off where these meet small inputs (AWQ, Lin et al. 2023,
    arXiv 2306.00978). For a group's rounding error e the error of the output is e^T H e with the
    group's block of H = sum x x^T (AWQ measures the same on a sample of outputs). Every group
    chooses by itself; for rounding to nearest.

    Args:
        weight: W (outputs, inputs).
        second_moment: H (inputs, inputs), or its diagonal (inputs,): errors of one group then do
            not make up for each other, which suits a rounding that sees to that itself (GPTQ).

    Raises:
        UserError: see `grids.fit_scales`.
    """
    # Only ratios count, and float32 has not the range of a sum over many tokens squared.
    importance = second_moment / max(np.abs(second_moment).max(), 1e-30)
    return fit_scales(weight, grid, name, mx.array(importance.astype(np.float32)), SHRINK)


def _clipped(task: Task[Kind], within_groups: bool) -> Task[Kind]:
    """The task on ranges that are clipped where that pays.

    Args:
        within_groups: errors of one group may make up for each other, which suits rounding to
            nearest; GPTQ and learned roundings see to that themselves.
    """
    problem = task.problem
    scales = []
    for linear, weight, grid in zip(problem.linears, problem.weights, problem.grids, strict=True):
        moment = task.moments[shared_input(linear)]
        importance = moment if within_groups else np.ascontiguousarray(moment.diagonal())
        scales.append(clipped_scales(weight, grid, importance, linear.name))
    clipped = replace(task, problem=replace(problem, scales=tuple(scales)))
    # The inputs are the same: what was summed over them stays.
    clipped.__dict__["moments"] = task.moments
    return clipped


def _gptq_fractional(task: Task[Any]) -> list[mx.array]:
    problem = task.problem
    return [
        gptq_codes(weight, scales, task.factors[shared_input(linear)])
        for linear, weight, scales in zip(
            problem.linears, problem.weights, problem.scales, strict=True
        )
    ]


def _rtn(task: Task[Rtn]) -> Proposal:
    return Proposal(rtn_codes(task.problem), task.problem.scales)


def _awq(task: Task[Awq]) -> Proposal:
    """Round-to-nearest on clipped ranges; the scale search is the recipe's `balance_kind`."""
    problem = _clipped(task, within_groups=True).problem
    return Proposal(rtn_codes(problem), problem.scales)


def _gptq(task: Task[Gptq]) -> Proposal:
    return Proposal(nearest_of(task.problem, _gptq_fractional(task)), task.problem.scales)


def _learn(task: Task[Any], joint: Joint | None = None) -> Proposal:
    recipe, problem = task.recipe, task.problem
    starts = _gptq_fractional(task) if recipe.start == "gptq" else _fractional(problem)
    learned = adaround.learn(
        problem, starts, recipe, task.rtn_error, task.seed, joint=joint, resume=task.resume
    )
    activations = None
    if joint is not None:
        pairs = zip(joint.quantizers.items(), learned.step_sizes, strict=True)
        activations = {name: replace(one, step_size=size) for (name, one), size in pairs}
    history = tuple(learned.state.history)
    return Proposal(
        learned.codes,
        problem.scales,
        history[-1]["binary_share"],
        history,
        activations,
        learned.loss_scale,
        starts,
    )


def _adaround(task: Task[AdaRound]) -> Proposal:
    return _learn(_clipped(task, within_groups=False) if task.recipe.clip else task)


def _taqdit(task: Task[TaqDit]) -> Proposal:
    """Rounding and step sizes together, from the calibrated ranges (arXiv 2411.14172)."""
    recipe, problem = task.recipe, task.problem
    samples = sampled_inputs(problem, problem.train, _RANGE_TOKENS, task.seed)
    input_of = {linear.name: shared_input(linear) for linear in problem.linears}
    quantizers = {
        name: range_quantizer(
            mx.min(samples[name]).item(), mx.max(samples[name]).item(), recipe.activation_bits
        )
        for name in dict.fromkeys(input_of.values())
    }
    return _learn(task, Joint(quantizers, input_of, recipe.activation_learning_rate, recipe.drop))


# By their names in the configuration.
ROUNDINGS: dict[str, Callable[[Task[Any]], Proposal]] = {
    Rtn.rounding: _rtn,
    Awq.rounding: _awq,
    Gptq.rounding: _gptq,
    AdaRound.rounding: _adaround,
    TaqDit.rounding: _taqdit,
}
