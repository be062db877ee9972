"""Balancing as part of a recipe: the same block at full precision, and its parameters stored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ditquant.backend import mx
from ditquant.network.blocks import tapped
from ditquant.weights import roundings
from ditquant.weights.balance_search import balanced_block
from ditquant.weights.block_io import read_block
from ditquant.weights.prefix import streams_after
from ditquant.weights.quantize_block import quantize_block
from ditquant.weights.reconstruct import block_error, block_problem, stream_errors, weights_restored
from ditquant.weights.roundings import Proposal, rtn_codes
from support.activations import statistics
from support.models import build_network, parameters
from support.problems import BLOCKS, full_recipe, write_images

KINDS = ("awq", "smoothquant", "csb")
RECIPES = {
    "awq": full_recipe("awq"),
    "smoothquant": full_recipe("rtn", balance="smoothquant"),
    "csb": full_recipe("rtn", balance="csb"),
}
BLOCK = "mm00"


def uneven_mmdit():
    """A random MMDiT, some channels of whose attention and MLP inputs are twenty times larger."""
    model = build_network(seed=4)
    for block in model.blocks:
        for stream in block.streams.values():
            linear = stream.module.adaLN_modulation.layers[1]
            hidden = linear.weight.shape[1]
            # Chunks of 64: shift, scale, gate of the attention, then of the MLP.
            for chunk in range(1, len(linear.bias) // hidden, 3):
                linear.bias[chunk * hidden + mx.array([3, 17, 40])] = 20.0
    mx.eval(model.module.parameters())
    return model


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("block_io"), uneven_mmdit())


def make_problem(files, model=None, recipe=RECIPES["awq"]):
    data = read_block(files, BLOCKS, BLOCK)
    return block_problem(model or uneven_mmdit(), BLOCK, data, recipe)


def measured(problem):
    """Statistics of the block's inputs, over four steps of eight rows."""
    seen = {linear.name: [] for linear in problem.block.linears}

    def note(linear, x):
        seen[linear.name].append(np.array(x.reshape(-1, x.shape[-1])))

    with tapped(problem.block.linears, note), weights_restored(problem):
        for step in range(4):
            rows = mx.array(problem.train[8 * step : 8 * step + 8])
            mx.eval(stream_errors(problem, problem.weights, rows))
    return statistics({name: np.stack(steps) for name, steps in seen.items()})


@pytest.mark.parametrize("kind", KINDS)
def test_the_full_precision_block_is_the_same(files, kind):
    problem = make_problem(files)
    balanced = balanced_block(problem, kind, 8, measured(problem), seed=1)
    # Uneven channels are what the search is for; its first candidate leaves inputs as they are.
    for fold in ("img.qkv", "img.fc1", "txt.qkv", "txt.fc1"):
        choice = balanced.choices[fold]
        unbalanced, chosen = next(iter(choice.errors.values())), min(choice.errors.values())
        assert choice.key != next(iter(choice.errors))
        assert chosen < 0.6 * unbalanced
    moved = [
        mx.max(mx.abs(own - other)).item()
        for own, other in zip(balanced.problem.weights, problem.weights, strict=True)
    ]
    assert max(moved) > 0.1
    # float32 rounding, squared, in units of the update's power.
    assert block_error(balanced.problem, balanced.problem.weights, problem.train) < 1e-9
    assert set(balanced.parameters) <= set(parameters(problem.block.module))


@pytest.mark.parametrize("kind", KINDS)
def test_the_result_is_the_block_that_was_judged(files, kind):
    """Loaded into a fresh model, weights and parameters have the error that the result states."""
    problem = make_problem(files)
    before = {name: mx.array(value) for name, value in parameters(problem.block.module).items()}
    result = quantize_block(problem, RECIPES[kind], seed=1, statistics=measured(problem))
    document = result.document
    assert document["accepted"]
    assert document["kept"].endswith(RECIPES[kind].rounding)
    assert document["hard_error"]["result"]["held_out"] < document["hard_error"]["rtn"]["held_out"]
    assert result.parameters
    assert document["balance"]
    after = parameters(problem.block.module)
    assert all(mx.array_equal(value, after[name]) for name, value in before.items())

    fresh = uneven_mmdit()
    assert set(result.parameters) <= set(parameters(fresh))
    streams_after(fresh, BLOCK, "mm01", problem.data, result.packed, result.parameters)
    own = make_problem(files, fresh)
    own = replace(own, energies=problem.energies)
    for split in ("train", "held_out"):
        error = block_error(own, own.weights, getattr(problem, split))
        assert error == pytest.approx(document["kept_error"][split], rel=1e-4)


def test_a_block_that_keeps_rtn_keeps_its_parameters(files, monkeypatch):
    def worse(task):
        codes = [mx.clip(codes + 3, 0, 15) for codes in rtn_codes(task.problem)]
        return Proposal(codes, task.problem.scales)

    problem = make_problem(files)
    monkeypatch.setitem(roundings.ROUNDINGS, "awq", worse)
    result = quantize_block(problem, RECIPES["awq"], seed=1)
    assert result.document["kept"] == "rtn"
    assert result.parameters == {}


def test_statistics_are_asked_for(files):
    problem = make_problem(files)
    with pytest.raises(ValueError, match="balance: csb needs activation statistics"):
        balanced_block(problem, "csb", 8, None, seed=1)


def test_learning_goes_on_from_the_balanced_block(files):
    problem = make_problem(files)
    recipe = full_recipe("adaround", balance="awq", iterations=60)
    result = quantize_block(problem, recipe, seed=1)
    balanced = quantize_block(problem, RECIPES["awq"], seed=1)
    errors = result.document["hard_error"]["result"], balanced.document["hard_error"]["result"]
    assert errors[0]["held_out"] < errors[1]["held_out"]
    assert set(result.parameters) == set(balanced.parameters)


def test_layers_left_alone_have_no_part_in_balancing(files):
    recipe = full_recipe("awq", layers={"*.img.mlp.fc1": "full"})
    problem = make_problem(files, recipe=recipe)
    result = quantize_block(problem, recipe, seed=1)
    assert "mm00.img.mlp.fc1" not in result.packed
    assert "mm00.img.mlp.fc1" not in result.document["linears"]
    folds = set(result.document["balance"])
    every = set(quantize_block(make_problem(files), RECIPES["awq"], seed=1).document["balance"])
    # The fold in front of fc1 has no other reader.
    assert len(every - folds) == 1
    assert folds < every
