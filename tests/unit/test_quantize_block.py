"""A proposal is judged on held-out rows and kept only if it beats RTN."""

from __future__ import annotations

import json
import math

import pytest

from ditquant.backend import mx
from ditquant.errors import UserError
from ditquant.weights import adaround, roundings
from ditquant.weights import quantize_block as judging
from ditquant.weights.block_io import read_block
from ditquant.weights.divergence import LIMIT, kept_text
from ditquant.weights.grids import unpack_codes
from ditquant.weights.quantize_block import quantize_block
from ditquant.weights.reconstruct import block_problem
from ditquant.weights.rounding import hard_codes
from ditquant.weights.roundings import Proposal, rtn_codes
from support.block_data import write_block_io
from support.models import build_network
from support.problems import full_recipe, make_problem

RTN = full_recipe("rtn", holdout=0.3)
ADAROUND = full_recipe("adaround", holdout=0.3)


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    model = build_network(seed=4)
    folder = tmp_path_factory.mktemp("block_io")
    files = [write_block_io(folder / f"{i}.safetensors", model, seed=i) for i in range(4)]
    data = read_block(files, ["mm00", "mm01"], "mm01")
    return block_problem(model, "mm01", data, RTN)


def codes_of(result, problem):
    return [unpack_codes(result.packed[linear.name].weight, 4) for linear in problem.linears]


def same(left, right):
    return all(mx.array_equal(a, b).item() for a, b in zip(left, right, strict=True))


def test_round_to_nearest_is_its_own_result(problem):
    result = quantize_block(problem, RTN, seed=1)
    document = result.document
    assert document["kept"] == "rtn"
    assert document["hard_error"]["rtn"] == document["hard_error"]["result"]
    assert document["binary_share"] is None
    assert same(codes_of(result, problem), rtn_codes(problem))
    # The last text block of SD3 has neither o_proj nor mlp.
    assert len(document["linears"]) == 9


@pytest.mark.parametrize("rounding", ["rtn", "gptq", "awq", "adaround", "taqdit"])
def test_a_block_that_layers_leave_alone_stays_as_it_is(tmp_path, rounding):
    recipe = full_recipe(rounding, layers={"mm00.*": "full"}, grid="channel")
    result = quantize_block(make_problem(tmp_path, recipe), recipe, seed=1)
    assert (result.packed, result.parameters) == ({}, {})
    assert result.document["kept_error"]["held_out"] == pytest.approx(0, abs=1e-9)
    assert not result.document["history"]


def test_a_better_proposal_is_kept(problem):
    result = quantize_block(problem, ADAROUND, seed=1)
    errors = result.document["hard_error"]
    assert result.document["accepted"]
    assert result.document["kept"] == "adaround"
    assert errors["result"]["held_out"] < errors["rtn"]["held_out"]
    assert result.document["binary_share"] == result.document["history"][-1]["binary_share"]
    assert not same(codes_of(result, problem), rtn_codes(problem))


def test_a_worse_proposal_is_refused_and_reported(problem, monkeypatch):
    def worse(task):
        codes = [mx.clip(codes + 1, 0, 15) for codes in rtn_codes(task.problem)]
        return Proposal(codes, task.problem.scales, 1.0)

    monkeypatch.setitem(roundings.ROUNDINGS, "adaround", worse)
    result = quantize_block(problem, ADAROUND, seed=1)
    errors = result.document["hard_error"]
    assert not result.document["accepted"]
    assert result.document["kept"] == "rtn"
    assert errors["result"]["held_out"] > errors["rtn"]["held_out"]
    assert same(codes_of(result, problem), rtn_codes(problem))


def test_a_proposal_that_went_astray_is_an_error_and_never_kept(problem, monkeypatch):
    """All weights rounded down: finite, and worse than any run of a sane recipe."""
    lose = hard_codes

    def astray(fractional, alpha, bits):
        return lose(fractional, mx.full(alpha.shape, -1.0), bits)

    monkeypatch.setattr(adaround, "hard_codes", astray)
    document = quantize_block(problem, ADAROUND, seed=1).document
    errors = document["hard_error"]
    assert errors["result"]["train"] > LIMIT * errors["rtn"]["train"]
    assert "times that without learning" in document["diverged"]["reason"]
    assert "smaller learning rate" in document["diverged"]["advice"]
    assert not document["accepted"]
    assert (document["kept"], document["kept_error"]) == ("rtn", errors["rtn"])
    assert kept_text(document) == "rtn, learning diverged"
    assert len(document["history"]) > 1


@pytest.mark.parametrize("rounding", ["adaround", "taqdit"])
def test_a_learning_rate_that_is_far_too_large_diverges(problem, rounding):
    options = {"iterations": 3, "learning_rate": 1e38, "activation_learning_rate": 1e38}
    recipe = full_recipe(rounding, **options)
    document = quantize_block(problem, recipe, seed=1).document
    assert document["diverged"]
    assert document["kept"] == "rtn"
    assert json.loads(json.dumps(document, allow_nan=False)) == json.loads(json.dumps(document))


@pytest.mark.parametrize("broken", ["gptq", "adaround"])
def test_what_overflows_is_never_kept(problem, monkeypatch, broken):
    """NaN is neither more nor less than anything: a minimum over errors may well take it."""
    judge = judging.block_error
    calls = []

    def judged(own, weights, rows):
        calls.append(rows)
        # rtn, then GPTQ's start, then what was learned; each on training rows and held-out ones.
        at = {"gptq": (3,), "adaround": (6,)}[broken]
        return math.nan if len(calls) in at else judge(own, weights, rows)

    monkeypatch.setattr(judging, "block_error", judged)
    recipe = full_recipe("adaround", start="gptq", iterations=5)
    document = quantize_block(problem, recipe, seed=1).document
    assert f"weights of {broken}" in document["diverged"]["reason"]
    assert document["kept"] == {"gptq": "rtn", "adaround": "gptq"}[broken]
    assert "result" not in document["hard_error"]
    assert math.isfinite(document["kept_error"]["held_out"])
    json.dumps(document, allow_nan=False)


def test_a_block_that_overflows_by_rtn_is_told(problem, monkeypatch):
    monkeypatch.setattr(judging, "block_error", lambda *arguments: math.inf)
    with pytest.raises(UserError, match="With the weights of rtn the output of block mm01 overf"):
        quantize_block(problem, RTN, seed=1)


def test_weight_errors_are_those_of_the_packed_weights(problem):
    result = quantize_block(problem, RTN, seed=1)
    for linear, weight in zip(problem.linears, problem.weights, strict=True):
        packed = result.packed[linear.name]
        values = mx.dequantize(packed.weight, packed.scales, packed.biases, 32, 4)
        error = mx.mean((values - weight) ** 2) / mx.mean(weight**2)
        row = result.document["linears"][linear.name]
        assert row["weight_error"] == pytest.approx(error.item(), rel=1e-5)
        assert 10 ** (-row["weight_sqnr_db"] / 10) == pytest.approx(row["weight_error"], rel=1e-4)
