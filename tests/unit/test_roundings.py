"""Roundings by their names, on a small random block, and what a recipe says beside the rounding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ditquant.backend import mx
from ditquant.network.blocks import shared_input
from ditquant.weights import adaround
from ditquant.weights.gptq import gptq_codes
from ditquant.weights.grids import fractional_codes, nearest_codes, unpack_codes
from ditquant.weights.quantize_block import quantize_block
from ditquant.weights.reconstruct import (
    block_error,
    quantized_weights,
    stream_errors,
    weights_restored,
)
from ditquant.weights.roundings import ROUNDINGS, Task, rtn_codes
from support.problems import behind_noise, full_recipe, make_problem

GROUP = full_recipe("rtn")
CHANNEL = full_recipe("rtn", grid="channel")


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    return make_problem(tmp_path_factory.mktemp("block_io"), GROUP)


@pytest.fixture(scope="module")
def channel(tmp_path_factory):
    return make_problem(tmp_path_factory.mktemp("block_io"), CHANNEL)


def error_of(problem, codes, rows):
    return block_error(problem, quantized_weights(problem, codes), rows)


def task_of(problem, recipe, seed=1):
    return Task(problem, recipe, seed, error_of(problem, rtn_codes(problem), problem.train))


def same(left, right):
    return all(mx.array_equal(one, other).item() for one, other in zip(left, right, strict=True))


# ---------------------------------------------------------------------------- joint learning


def test_rounding_and_activation_steps_are_learned_together(channel):
    recipe = full_recipe("taqdit", grid="channel", activation_learning_rate=1e-3)
    proposal = ROUNDINGS["taqdit"](task_of(channel, recipe))
    inputs = {shared_input(linear) for linear in channel.linears}
    assert set(proposal.activations) == inputs
    assert len(inputs) == 8  # of two streams: query, key and value; o_proj; fc1; fc2
    assert all(one.bits == 8 for one in proposal.activations.values())
    unlearned = ROUNDINGS["taqdit"](
        task_of(channel, replace(recipe, iterations=1, activation_learning_rate=1e-30))
    )
    for name, start in unlearned.activations.items():
        learned = proposal.activations[name]
        assert learned.zero == start.zero
        assert learned.step_size.item() != start.step_size.item(), name
        # Adam's rate bounds how far a step can go.
        assert learned.step_size.item() == pytest.approx(start.step_size.item(), abs=60 * 2e-3)
        assert learned.step_size.item() >= 0.0099 * start.step_size.item()
    rows = channel.held_out
    assert error_of(channel, proposal.codes, rows) < error_of(channel, rtn_codes(channel), rows)


def test_learned_steps_are_stored_with_the_block(channel):
    recipe = full_recipe("taqdit", grid="channel", iterations=100)
    result = quantize_block(channel, recipe, seed=1)
    errors = result.document["hard_error"]
    assert result.document["accepted"]
    assert result.document["kept"] == "taqdit"
    assert errors["result"]["held_out"] < errors["rtn"]["held_out"]
    assert set(result.activations) == {shared_input(linear) for linear in channel.linears}
    for step, zero in result.activations.values():
        assert step > 0
        assert zero in range(256)
    assert quantize_block(channel, CHANNEL, seed=1).activations == {}


def test_dropping_everything_leaves_rounding_alone(channel):
    """With all elements unquantized the steps have no part in the error."""
    few = full_recipe("taqdit", grid="channel", iterations=5)
    task = task_of(channel, few)
    plain = ROUNDINGS["adaround"](
        task_of(channel, full_recipe("adaround", grid="channel", iterations=5))
    )
    assert same(
        ROUNDINGS["taqdit"](replace(task, recipe=replace(few, drop=1.0))).codes, plain.codes
    )
    assert ROUNDINGS["taqdit"](task).history != plain.history


# -------------------------------------------------------------------------- weights of steps

SIGMAS = mx.array([1.0, 1.0, 0.75, 0.75, 0.25, 0.25])


def test_all_steps_count_the_same_by_default():
    assert adaround.row_weights("uniform", SIGMAS) is None


def test_early_steps_count_by_their_noise():
    weights = np.array(adaround.row_weights("early", SIGMAS))
    assert weights == pytest.approx(np.array(SIGMAS) / (4.0 / 6), rel=1e-6)
    assert weights.mean() == pytest.approx(1.0, rel=1e-6)


def test_steps_count_by_the_square_of_how_far_the_sampler_goes():
    # 1 -> 0.75 -> 0.25 -> 0; rows of several images, in any order.
    order = [4, 0, 2, 5, 1, 3]
    lengths = np.array([0.25, 0.25, 0.5, 0.5, 0.25, 0.25]) ** 2
    weights = np.array(adaround.row_weights("sampler", SIGMAS[mx.array(order)]))
    assert weights == pytest.approx((lengths / lengths.mean())[order], rel=1e-6)
    assert weights.mean() == pytest.approx(1.0, rel=1e-6)


def test_an_error_is_the_weighted_mean_of_its_rows(problem):
    weights = quantized_weights(problem, rtn_codes(problem))
    rows, counts = problem.train[:3], [0.5, 2.0, 0.0]
    by_row = [error_of(problem, rtn_codes(problem), rows[one : one + 1]) for one in range(3)]
    with weights_restored(problem):
        errors = stream_errors(
            problem, weights, mx.array(rows), row_weights=mx.array(counts, dtype=mx.float32)
        )
        total = sum(error.item() for error in errors) / len(errors)
    assert total == pytest.approx(np.mean(np.array(counts) * by_row), rel=1e-5)


# ------------------------------------------------------------------------- layers and starts


def test_layers_have_bits_of_their_own_or_none(tmp_path):
    patterns = {"*.fc2": 6, "*.txt.*": "full", "mm00.txt.mlp.fc1": 8}
    recipe = full_recipe("adaround", iterations=5, layers=patterns)
    own = make_problem(tmp_path, recipe)
    before = {linear.name: linear.module.weight for linear in own.block.linears}
    result = quantize_block(own, recipe, seed=1)
    expected = {f"mm00.img.attn.{place}_proj": 4 for place in "qkvo"}
    expected |= {"mm00.img.mlp.fc1": 4, "mm00.img.mlp.fc2": 6, "mm00.txt.mlp.fc1": 8}
    assert {name: packed.bits for name, packed in result.packed.items()} == expected
    assert {name: row["bits"] for name, row in result.document["linears"].items()} == expected
    for linear in own.block.linears:
        assert mx.array_equal(linear.module.weight, before[linear.name]), linear.name


def test_learning_can_start_from_gptq(problem):
    recipe = full_recipe("adaround", start="gptq")
    task = task_of(problem, recipe)
    fractional = [
        gptq_codes(weight, scales, task.factors[shared_input(linear)])
        for linear, weight, scales in zip(
            problem.linears, problem.weights, problem.scales, strict=True
        )
    ]
    gptq = ROUNDINGS["gptq"](task).codes
    assert same(gptq, [nearest_codes(one, 4) for one in fractional])
    for code, one in zip(ROUNDINGS["adaround"](task).codes, fractional, strict=True):
        # On offer are the codes below and above what GPTQ made of the weight.
        below = mx.clip(mx.floor(one), 0, 15)
        above = mx.clip(mx.floor(one) + 1, 0, 15)
        assert mx.all((code == below) | (code == above))
    result = quantize_block(problem, recipe, seed=1)
    errors = result.document["hard_error"]
    assert set(errors) == {"rtn", "gptq", "result"}
    assert errors["gptq"]["held_out"] == pytest.approx(
        error_of(problem, gptq, problem.held_out), rel=1e-6
    )
    assert result.document["kept_error"]["held_out"] == min(
        error["held_out"] for error in errors.values()
    )


def test_a_start_that_is_better_is_kept(problem, monkeypatch):
    recipe = full_recipe("adaround", start="gptq", iterations=1)
    task = task_of(problem, recipe)
    good = ROUNDINGS["adaround"](task_of(problem, full_recipe("adaround")))
    monkeypatch.setitem(ROUNDINGS, "gptq", lambda task: good)
    result = quantize_block(problem, recipe, task.seed)
    assert result.document["kept"] == "gptq"
    assert not result.document["accepted"]
    codes = [unpack_codes(result.packed[one.name].weight, 4) for one in problem.linears]
    assert same(codes, good.codes)


def test_clipped_ranges_are_proposed_with_their_codes(problem):
    proposal = ROUNDINGS["adaround"](
        task_of(problem, full_recipe("adaround", clip=True, iterations=5))
    )
    smaller = [
        mx.mean(mx.abs(own.scales) < mx.abs(full.scales)).item()
        for own, full in zip(proposal.scales, problem.scales, strict=True)
    ]
    assert max(smaller) > 0.1
    kept = [own.bits for own in proposal.scales]
    assert kept == [full.bits for full in problem.scales]


# ------------------------------------------------------------------------ inputs of learning


def entering(problem, mix):
    """What `Learner` feeds to the block in rows 3 and 5."""
    recipe = full_recipe("adaround", inputs="mixed" if mix else "quantized")
    starts = [
        fractional_codes(weight, scales)
        for weight, scales in zip(problem.weights, problem.scales, strict=True)
    ]
    learner = adaround.Learner(problem, starts, recipe, 0.01, seed=1)
    return learner._entering(mx.array([3, 5]), mx.random.key(0))


def test_mixed_inputs_are_of_either_kind(problem):
    behind = replace(problem, data=behind_noise(problem.data))
    rows = mx.array([3, 5])
    for mix in (0.0, 0.5):
        for stream, full, noisy in zip(
            entering(behind, mix), behind.data.inputs, behind.data.prefix, strict=True
        ):
            own = stream == full[rows]
            assert mx.all(own | (stream == noisy[rows]))
            # Five standard deviations of a share of draws.
            spread = 5 * (0.25 / stream.size) ** 0.5
            assert mx.mean(own).item() == pytest.approx(mix, abs=spread)


def test_without_a_prefix_there_is_nothing_to_mix(problem):
    for stream, full in zip(entering(problem, 0.5), problem.data.inputs, strict=True):
        assert mx.array_equal(stream, full[mx.array([3, 5])])


def test_learning_on_quantized_inputs_makes_up_for_their_errors(problem):
    """Judged on what will enter, learning on it beats learning on what the full model has."""
    behind = replace(problem, data=behind_noise(problem.data, 0.1))
    codes = {
        kind: ROUNDINGS["adaround"](
            task_of(own, full_recipe("adaround", inputs=kind, learning_rate=0.1))
        ).codes
        for kind, own in (("full", problem), ("quantized", behind), ("mixed", behind))
    }
    errors = {kind: error_of(behind, one, behind.train) for kind, one in codes.items()}
    assert errors["quantized"] < errors["full"]
    assert errors["mixed"] < errors["full"]
    assert not same(codes["quantized"], codes["mixed"])
