"""Balances one block before it is quantized, each fold by its own measured error.

`balance` folds, `balance_factors` makes candidates from the activation track's statistics, and
`balance_search` measures; here a recipe's choice of them meets a block and its data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..activations.input_statistics import Statistics
from ..backend import mx
from ..network.blocks import shared_input
from .balance import Balance, Fold, apply_balance, balanced_parameters, folds
from .balance_factors import csb_factors, fold_absmax, weight_absmax
from .balance_search import Choice, Reader, choose_awq_strength, choose_factors, choose_strength
from .grids import fit_scales
from .layer_inputs import sampled_inputs
from .reconstruct import BlockProblem

# Tokens on which a fold's candidates are compared; each channel is seen that often.
_SAMPLED_TOKENS = 1024


@dataclass(frozen=True)
class BalancedBlock:
    """A block problem after balancing.

    Attributes:
        problem: on the balanced weights; its outputs at full precision are those of before.
        parameters: parameter path inside the block -> new array, for all that balancing changed.
        record: fold's name -> {"chosen", "errors"} of the search, for the block's JSON.
    """

    problem: BlockProblem
    parameters: dict[str, mx.array]
    record: dict[str, dict[str, Any]]


def _choose(
    kind: str,
    fold: Fold,
    readers: Sequence[Reader],
    problem: BlockProblem,
    activation_bits: int | None,
    statistics: Statistics | None,
) -> Choice[Any]:
    names = [linear.name for linear in problem.linears]
    quantized = [names.index(one.name) for one in fold.readers if one.name in names]
    grid = problem.grids[quantized[0]]
    if kind == "awq":
        return choose_awq_strength(readers, grid, activation_bits)
    if statistics is None:
        raise ValueError(f"balance: {kind} needs activation statistics")
    absmax = fold_absmax(statistics, fold)
    if kind == "smoothquant":
        return choose_strength(readers, absmax.max(axis=0), grid, activation_bits)
    weights = weight_absmax([reader.weight for reader in readers])
    candidates = {"none": np.ones(len(weights), np.float32), "csb": csb_factors(absmax, weights)}
    return choose_factors(readers, candidates, grid, activation_bits)


def balanced_block(
    problem: BlockProblem,
    kind: str,
    activation_bits: int | None,
    statistics: Statistics | None,
    seed: int,
) -> BalancedBlock:
    """Chooses factors for every fold and balances the block in place.

    Args:
        kind: "smoothquant", "csb" or "awq".
        activation_bits: the inputs' bits while candidates are compared; None: full precision.
        statistics: of the activation track, at full precision; `awq` needs none.
        seed: of the sampled tokens.
    """
    names = {linear.name for linear in problem.linears}
    samples = sampled_inputs(problem, problem.train, _SAMPLED_TOKENS, seed)
    choices: dict[str, Choice[Any]] = {}
    for fold in folds(problem.block):
        # A fold whose readers keep their precision has nothing to gain.
        readers = [
            Reader(samples[shared_input(linear)], linear.module.weight)
            for linear in fold.readers
            if linear.name in names
        ]
        if readers:
            choices[fold.name] = _choose(kind, fold, readers, problem, activation_bits, statistics)
    balance = Balance(factors={name: choice.vector for name, choice in choices.items()})
    parameters = balanced_parameters(problem.block, balance)
    apply_balance(problem.block, balance)
    record = {
        name: {
            "chosen": choice.key,
            "errors": {str(key): error for key, error in choice.errors.items()},
        }
        for name, choice in choices.items()
    }
    return BalancedBlock(_reread(problem), parameters, record)


def _reread(problem: BlockProblem) -> BlockProblem:
    """The problem of the block as it is now."""
    weights = tuple(linear.module.weight.astype(mx.float32) for linear in problem.linears)
    scales = tuple(
        fit_scales(weight, grid, linear.name)
        for weight, grid, linear in zip(weights, problem.grids, problem.linears, strict=True)
    )
    modulation = tuple(
        stream.modulation(problem.data.modulation) for stream in problem.block.streams.values()
    )
    mx.eval(weights, modulation, [(one.scales, one.zeros) for one in scales])
    return replace(problem, weights=weights, scales=scales, modulation=modulation)
