"""AdaRound on a block as it is commonly written, which the fast one must equal.

Sample by sample: in every iteration each sample of the batch is copied from the host, the quantized
weights are computed anew from alpha, the loss is read back, and regulariser and Adam run operation
by operation. The mathematics are those of `weights.adaround`: the same batches, units of the
error, regulariser, annealing and constants of Adam, hence the same result but for float rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ditquant.backend import mx, to_numpy
from ditquant.planning.recipes import Learned
from ditquant.weights import adaround
from ditquant.weights.grids import Scales, fractional_codes
from ditquant.weights.loss_scale import LossScale
from ditquant.weights.reconstruct import BlockProblem
from ditquant.weights.rounding import (
    ADAM_DECAY,
    ADAM_EPSILON,
    GAMMA,
    ZETA,
    hard_codes,
    start_alpha,
)


def starts(problem: BlockProblem) -> list[mx.array]:
    """W / scale + zero of each linear."""
    return [
        fractional_codes(weight, scales)
        for weight, scales in zip(problem.weights, problem.scales, strict=True)
    ]


def soft_weight(weight: mx.array, scales: Scales, alpha: mx.array) -> mx.array:
    """scale (clip(floor(W / scale + zero) + h(alpha), 0, levels - 1) - zero), from the start."""
    rows, columns = weight.shape
    scale = mx.repeat(scales.scales.astype(mx.float32), scales.group_size, axis=1)
    zero = mx.repeat(scales.zeros, scales.group_size, axis=1)
    h = mx.clip((ZETA - GAMMA) * mx.sigmoid(alpha) + GAMMA, 0.0, 1.0)
    codes = mx.clip(mx.floor(weight / scale + zero) + h, 0, 2**scales.bits - 1)
    return ((codes - zero) * scale).reshape(rows, columns)


@dataclass
class PlainLoop:
    """The loop's state, and one iteration.

    Attributes:
        problem, recipe: what is learned, and how.
        rtn_error: the unit of lambda.
        seed: of the batches.
        host: inputs, targets and modulation as numpy arrays, copied to the device when needed.
        alphas, means, squares: rounding variables and Adam's moments.
    """

    problem: BlockProblem
    recipe: Learned
    rtn_error: float
    seed: int
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
            soft_weight(*three)
            for three in zip(problem.weights, problem.scales, alphas, strict=True)
        ]
        for linear, soft in zip(problem.linears, softs, strict=True):
            linear.module.weight = soft.astype(inputs[0].dtype)
        for stream, parameters in zip(problem.block.streams.values(), modulation, strict=True):
            stream.set_modulation(parameters)
        outputs = problem.block(inputs, problem.positions)
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
        problem = self.problem
        if problem.data.inputs[0].dtype != mx.float16:
            return 1.0
        outputs = max(target[0].size for target in problem.data.targets)
        return LossScale(mx.float16, outputs, 1).start()[0].item()

    def iterate(self, iteration: int) -> float:
        """One iteration over a batch; returns its loss."""
        recipe, problem = self.recipe, self.problem
        warmup = recipe.warmup * recipe.iterations
        progress = (iteration - warmup) / (recipe.iterations - warmup)
        count = sum(weight.size for weight in problem.weights)
        penalty = recipe.regularizer * self.rtn_error / count if progress >= 0 else 0.0
        beta = adaround.annealed_beta(max(progress, 0.0))
        rows = adaround.batch_rows(problem, recipe.batch_size, self.seed, iteration)
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
        keep_mean, keep_square = ADAM_DECAY
        for index, slope in enumerate(slopes):
            mean = keep_mean * self.means[index] + (1 - keep_mean) * slope
            square = keep_square * self.squares[index] + (1 - keep_square) * slope**2
            root = mx.sqrt(square / (1 - keep_square**step)) + ADAM_EPSILON
            moved = self.recipe.learning_rate * mean / (1 - keep_mean**step) / root
            self.alphas[index] = self.alphas[index] - moved
            self.means[index], self.squares[index] = mean, square
        mx.eval(self.alphas, self.means, self.squares)

    def codes(self) -> list[mx.array]:
        return [
            hard_codes(start, alpha, scales.bits)
            for start, alpha, scales in zip(
                starts(self.problem), self.alphas, self.problem.scales, strict=True
            )
        ]


def plain_loop(problem: BlockProblem, recipe: Learned, rtn_error: float, seed: int) -> PlainLoop:
    data = problem.data
    host = [
        [to_numpy(array) for array in kind]
        for kind in (data.inputs, data.targets, problem.modulation)
    ]
    alphas = [start_alpha(start) for start in starts(problem)]
    zeros = [[mx.zeros_like(alpha) for alpha in alphas] for _ in range(2)]
    mx.eval(alphas, zeros)
    return PlainLoop(problem, recipe, rtn_error, seed, host, alphas, *zeros)
