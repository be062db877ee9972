"""The ways to choose codes for a block, by their names in the configuration.

Each takes a `Task` and proposes codes; `recipes` judges them. A recipe may first clip the grids'
ranges, and a learned rounding may start from GPTQ's weights instead of W.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ..backend import mx
from ..network.blocks import shared_input
from . import adaround
from .awq import clipped_scales
from .gptq import Factor, factorize, gptq_steps
from .grids import Scales, steps_of
from .joint_steps import Joint
from .layer_inputs import sampled_inputs, second_moments
from .learning_state import Resume
from .lsq import ActivationQuantizer, range_quantizer
from .reconstruct import BlockProblem
from .rounding import nearest_codes

# Tokens from which the starting range of an activation quantizer is read.
_RANGE_TOKENS = 8192


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
        starts: W / scale + zero that a learning started from, on `scales`.
    """

    codes: list[mx.array]
    scales: tuple[Scales, ...]
    binary_share: float | None = None
    history: tuple[dict[str, float], ...] = ()
    activations: Mapping[str, ActivationQuantizer] | None = None
    loss_scale: Mapping[str, float] | None = None
    starts: list[mx.array] | None = None


@dataclass(frozen=True)
class Task:
    """A block, and what a rounding needs to know beside it.

    Attributes:
        problem: the block, balanced if the recipe says so.
        recipe: a validated entry of the configuration's `recipes`.
        seed: of everything random.
        rtn_error: of round-to-nearest on the training rows.
        resume: where the state of an interrupted job is kept, or None.
    """

    problem: BlockProblem
    recipe: Mapping[str, Any]
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
        damping = self.recipe["damping"]
        return {
            name: factorize(matrix, damping, act_order=True, name=name)
            for name, matrix in self.moments.items()
        }


def rtn_codes(problem: BlockProblem) -> list[mx.array]:
    """Round-to-nearest codes of each linear."""
    return [
        nearest_codes(steps_of(weight, scales), 2**scales.bits)
        for weight, scales in zip(problem.weights, problem.scales, strict=True)
    ]


def _clipped(task: Task, within_groups: bool) -> Task:
    """The task on ranges that are clipped where that pays (`awq.clipped_scales`).

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


def _starts(task: Task) -> list[mx.array]:
    """W / scale + zero of each linear, or GPTQ's weights (`start: gptq`)."""
    problem = task.problem
    pairs = list(zip(problem.linears, problem.weights, problem.scales, strict=True))
    if task.recipe.get("start", "rtn") == "gptq":
        return [
            gptq_steps(weight, scales, task.factors[shared_input(linear)])
            for linear, weight, scales in pairs
        ]
    return [steps_of(weight, scales) for _, weight, scales in pairs]


def _nearest(task: Task) -> Proposal:
    return Proposal(rtn_codes(task.problem), task.problem.scales)


def _awq(task: Task) -> Proposal:
    """Round-to-nearest on clipped ranges; the scale search is the recipe's `balance: awq`."""
    return _nearest(_clipped(task, within_groups=True))


def _gptq(task: Task) -> Proposal:
    problem = task.problem
    codes = [
        nearest_codes(
            gptq_steps(weight, scales, task.factors[shared_input(linear)]), 2**scales.bits
        )
        for linear, weight, scales in zip(
            problem.linears, problem.weights, problem.scales, strict=True
        )
    ]
    return Proposal(codes, problem.scales)


def step_weights(kind: str, sigmas: mx.array) -> mx.array | None:
    """How much each row counts in the learning, (rows,) with a mean of 1; None: all the same.

    Args:
        kind: "uniform"; "sampler": (d sigma)^2, the square of how far the sampler goes with what is
            predicted there; "early": sigma, since errors at high noise change the structure.
        sigmas: (rows,) of each row.
    """
    if kind == "uniform":
        return None
    levels = np.array(sigmas, dtype=np.float64)
    if kind == "early":
        weights = levels
    else:
        known = np.unique(levels)[::-1]
        lengths = known - np.append(known[1:], 0.0)
        weights = lengths[np.searchsorted(-known, -levels)] ** 2
    return mx.array((weights / weights.mean()).astype(np.float32))


def _learn(task: Task, joint: Joint | None = None) -> Proposal:
    recipe, problem = task.recipe, task.problem
    options = adaround.Options(
        iterations=recipe["iterations"],
        batch_size=recipe["batch_size"],
        learning_rate=recipe["learning_rate"],
        regularizer=recipe["regularizer"],
        warmup=recipe["warmup"],
        rows_at_once=recipe["rows_at_once"],
        input_mix=0.5 if recipe["inputs"] == "mixed" else 0.0,
    )
    starts = _starts(task)
    learned = adaround.learn(
        problem,
        starts,
        options,
        task.rtn_error,
        task.seed,
        row_weights=step_weights(recipe["step_weights"], problem.data.sigmas),
        joint=joint,
        resume=task.resume,
    )
    activations = None
    if joint is not None:
        activations = {
            name: replace(quantizer, step=step)
            for (name, quantizer), step in zip(joint.quantizers.items(), learned.steps, strict=True)
        }
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


def _adaround(task: Task) -> Proposal:
    return _learn(_clipped(task, within_groups=False) if task.recipe["clip"] else task)


def _taqdit(task: Task) -> Proposal:
    """Rounding and activation steps together, from the calibrated ranges (arXiv 2411.14172)."""
    recipe, problem = task.recipe, task.problem
    samples = sampled_inputs(problem, problem.train, _RANGE_TOKENS, task.seed)
    input_of = {linear.name: shared_input(linear) for linear in problem.linears}
    quantizers = {
        name: range_quantizer(
            mx.min(samples[name]).item(), mx.max(samples[name]).item(), recipe["activation_bits"]
        )
        for name in dict.fromkeys(input_of.values())
    }
    joint = Joint(quantizers, input_of, recipe["activation_learning_rate"], recipe["drop"])
    return _learn(task, joint)


ROUNDINGS: dict[str, Callable[[Task], Proposal]] = {
    "rtn": _nearest,
    "awq": _awq,
    "gptq": _gptq,
    "adaround": _adaround,
    "taqdit": _taqdit,
}
