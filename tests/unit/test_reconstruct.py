"""A block as a function of its weights: errors, energies, and nothing left behind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from mlx.utils import tree_flatten

from ditquant.backend import mx
from ditquant.weights.block_io import read_block
from ditquant.weights.reconstruct import (
    block_error,
    block_problem,
    quantized_weights,
    split_rows,
    stream_errors,
    weights_restored,
)
from ditquant.weights.roundings import rtn_codes
from support.block_data import write_block_io
from support.models import build_network, parameters
from support.problems import full_recipe


@pytest.fixture(scope="module")
def model():
    return build_network(seed=4)


@pytest.fixture(scope="module")
def problem(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("block_io")
    files = [write_block_io(folder / f"{i}.safetensors", model, seed=i) for i in range(3)]
    data = read_block(files, ["mm00", "mm01"], "mm00")
    return block_problem(model, "mm00", data, full_recipe("rtn", holdout=0.3))


@pytest.mark.parametrize(
    ("rows_per_image", "share", "train"),
    [
        ((20, 20, 20, 20, 20), 0.2, 80),
        ((20, 20, 20, 20, 20), 0.5, 60),
        ((20, 20), 0.5, 20),
        ((20, 20), 0.01, 20),
        ((10,), 0.2, 8),
        ((2,), 0.01, 1),
    ],
)
def test_whole_images_are_held_out(rows_per_image, share, train):
    rows, held_out = split_rows(rows_per_image, share)
    assert len(rows) == train
    assert np.array_equal(np.concatenate([rows, held_out]), np.arange(sum(rows_per_image)))


def test_full_precision_weights_have_no_error(problem):
    for rows in (problem.train, problem.held_out):
        # Rows in another batch: float32 rounding, squared, in units of the update's power.
        assert block_error(problem, problem.weights, rows) < 1e-9


def test_an_error_in_float16_is_that_in_float32(tmp_path):
    """8 bits leave less than what float16 rounds away inside of a block, which must not count."""
    errors, noise = {}, 0.0
    for dtype in (mx.float16, mx.float32):
        network = build_network(seed=4)
        network.module.set_dtype(mx.float16)
        network.module.set_dtype(dtype)
        file = write_block_io(tmp_path / f"{dtype}.safetensors", network, seed=1, dtype=dtype)
        data = read_block([file], ["mm00", "mm01"], "mm00")
        # The small model's time embedding is float32's, and makes float32 of all behind it.
        targets = tuple(target.astype(dtype) for target in data.targets)
        data = replace(data, targets=targets, modulation=data.modulation.astype(dtype))
        problem = block_problem(network, "mm00", data, full_recipe("rtn", bits=8, holdout=0.5))
        assert block_error(problem, problem.weights, problem.held_out) < 1e-9
        weights = quantized_weights(problem, rtn_codes(problem))
        errors[dtype] = block_error(problem, weights, problem.held_out)
        if dtype == mx.float16:
            before = problem.block.module.parameters()
            with weights_restored(problem):
                rows = mx.array(problem.held_out)
                noise = sum(stream_errors(problem, weights, rows)).item() / 2
            assert all(
                after.dtype == dtype and mx.array_equal(after, one)
                for (_, after), (_, one) in zip(
                    tree_flatten(problem.block.module.parameters()),
                    tree_flatten(before),
                    strict=True,
                )
            )
    # The weights are the same; the streams differ by float16's rounding, 2^-11 of each value, and
    # the squares that are averaged by twice as much, in either direction.
    assert errors[mx.float16] == pytest.approx(errors[mx.float32], rel=2**-9)
    assert noise > 1.02 * errors[mx.float16], "this would not tell whether float16's noise counts"


def test_dropping_a_streams_update_costs_its_whole_energy(problem, model):
    """Gates at zero make a block the identity: an error of exactly one in every stream."""
    zero = [mx.zeros_like(parameters) for parameters in problem.modulation]
    still = type(problem)(**{**vars(problem), "modulation": tuple(zero)})
    with weights_restored(still):
        errors = stream_errors(still, still.weights, mx.array(still.train))
    assert [error.item() for error in errors] == pytest.approx([1.0, 1.0], rel=1e-4)


def test_round_to_nearest_costs_more_at_fewer_bits(problem, model):
    errors = []
    for bits in (2, 3, 4, 6, 8):
        recipe = full_recipe("rtn", bits=bits, holdout=0.3)
        other = block_problem(model, "mm00", problem.data, recipe)
        errors.append(block_error(other, quantized_weights(other, rtn_codes(other)), other.train))
    assert errors == sorted(errors, reverse=True)
    # Each bit is worth a factor of four in power: 8 bits are 4 bits below 4 bits.
    assert errors[2] / errors[4] == pytest.approx(4**4, rel=0.6)


def test_the_model_is_left_as_it_was(problem, model):
    before = {name: mx.array(value) for name, value in parameters(model).items()}
    block_error(problem, quantized_weights(problem, rtn_codes(problem)), problem.train)
    after = parameters(model)
    assert all(mx.array_equal(value, after[name]) for name, value in before.items())
