"""The fast learning is AdaRound as it is commonly written."""

from __future__ import annotations

import math

from ditquant.backend import mx
from ditquant.weights import adaround
from ditquant.weights.block_io import read_block
from ditquant.weights.reconstruct import (
    block_error,
    block_problem,
    quantized_weights,
    weights_restored,
)
from ditquant.weights.roundings import rtn_codes
from support.block_data import write_block_io
from support.models import build_network
from support.plain_adaround import plain_loop, starts
from support.problems import full_recipe

RECIPE = full_recipe("adaround", iterations=40, batch_size=4, learning_rate=0.04)


def test_the_plain_loop_chooses_the_same_codes(tmp_path):
    """The same mathematics: at most a few weights that stand between two codes end elsewhere."""
    model = build_network(seed=4)
    files = [write_block_io(tmp_path / f"{i}.safetensors", model, seed=i) for i in range(3)]
    data = read_block(files, ["mm00", "mm01"], "mm00")
    problem = block_problem(model, "mm00", data, RECIPE)
    near = rtn_codes(problem)

    def error_of(codes):
        return block_error(problem, quantized_weights(problem, codes), problem.train)

    def differing(one, other):
        return sum(mx.sum(a != b).item() for a, b in zip(one, other, strict=True))

    rtn = error_of(near)
    loop = plain_loop(problem, RECIPE, rtn, seed=1)
    with weights_restored(problem):
        for iteration in range(RECIPE.iterations):
            loop.iterate(iteration)
    plain = loop.codes()
    ours = adaround.learn(problem, starts(problem), RECIPE, rtn, seed=1).codes
    # float32 rounding is 1e-6 of a gradient; it decides for the weights whose alpha ends that near
    # to 0. Learning itself moves some percent of the weights.
    count = sum(code.size for code in ours)
    moved, apart = differing(ours, near), differing(ours, plain)
    assert moved > 0.02 * count
    assert apart <= 0.01 * moved
    # A step of one code in one weight has 12 times the weight's share of RTN's error (a uniform
    # error's mean square is a twelfth of the step's), and adds to the rest by Cauchy-Schwarz.
    error, one_code = error_of(plain), 12 * rtn / count
    assert error < 0.8 * rtn
    assert error_of(ours) <= error + apart * (2 * math.sqrt(error * one_code) + one_code)
