"""Learned rounding: better than RTN on rows it has not seen, and the same bits after a stop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ditquant.backend import mx
from ditquant.network.blocks import shared_input
from ditquant.weights import adaround, learning
from ditquant.weights.adaround import Learner, annealed_beta, batch_rows
from ditquant.weights.block_io import read_block
from ditquant.weights.grids import fractional_codes
from ditquant.weights.learning import Resume
from ditquant.weights.lsq import Joint, range_quantizer
from ditquant.weights.reconstruct import (
    block_error,
    block_problem,
    quantized_weights,
    weights_restored,
)
from ditquant.weights.roundings import rtn_codes
from support.block_data import write_block_io
from support.models import build_network, parameters
from support.problems import full_recipe

RECIPE = full_recipe("adaround", iterations=50, learning_rate=0.16)
IMAGES = 5
SHORT = full_recipe("adaround", iterations=40, batch_size=4, learning_rate=0.05, regularizer=500.0)


def make_problem(folder, recipe=RECIPE, dtype=mx.float32):
    model = build_network(seed=4, dtype=dtype, float16_dtype=dtype)
    model.module.set_dtype(dtype)
    files = [
        write_block_io(folder / f"{i}.safetensors", model, seed=i, dtype=dtype)
        for i in range(IMAGES)
    ]
    data = read_block(files, ["mm00", "mm01"], "mm00")
    return block_problem(model, "mm00", data, recipe)


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    return make_problem(tmp_path_factory.mktemp("block_io"))


def starts(problem):
    return [fractional_codes(*pair) for pair in zip(problem.weights, problem.scales, strict=True)]


def learn(problem, *arguments, **options):
    return adaround.learn(problem, starts(problem), *arguments, **options)


def errors(problem, codes, rows):
    return block_error(problem, quantized_weights(problem, codes), rows)


@pytest.fixture(scope="module")
def rtn(problem):
    codes = rtn_codes(problem)
    return errors(problem, codes, problem.train), errors(problem, codes, problem.held_out)


def same(left, right):
    return all(mx.array_equal(a, b).item() for a, b in zip(left, right, strict=True))


def assert_equal(one, other):
    """Two learnings ended with the same bits."""
    assert same(one.codes, other.codes)
    assert same(one.state.arrays(), other.state.arrays())
    assert one.state.history == other.state.history
    assert one.loss_scale == other.loss_scale


def test_learned_rounding_beats_nearest_on_unseen_rows(problem, rtn):
    learned = learn(problem, RECIPE, rtn[0], seed=1)
    codes, state = learned.codes, learned.state
    assert errors(problem, codes, problem.held_out) < 0.9 * rtn[1]
    assert errors(problem, codes, problem.train) < 0.7 * rtn[0]
    last = state.history[-1]
    assert last["iteration"] == RECIPE.iterations
    assert last["binary_share"] >= 0.9
    for code, near in zip(codes, rtn_codes(problem), strict=True):
        # Only the two neighbours of a weight are on offer.
        assert mx.max(mx.abs(code - near)).item() <= 1


def test_channel_grid_learns_too(tmp_path):
    channel = make_problem(tmp_path, replace(RECIPE, grid="channel"))
    nearest = rtn_codes(channel)
    start = errors(channel, nearest, channel.train)
    codes = learn(channel, RECIPE, start, seed=1).codes
    unseen = errors(channel, nearest, channel.held_out)
    assert errors(channel, codes, channel.held_out) < 0.9 * unseen


def test_float16_gradients_do_not_vanish(tmp_path):
    half = make_problem(tmp_path, dtype=mx.float16)
    nearest = rtn_codes(half)
    start = errors(half, nearest, half.train)
    learned = learn(half, RECIPE, start, seed=1)
    assert all(value.dtype == mx.float32 for value in learned.state.values)
    assert errors(half, learned.codes, half.train) < 0.7 * start


class Stop(Exception):
    """Stands for a kill."""


def stop_after(monkeypatch, iterations):
    """The learning dies at the end of an iteration, after what it does there."""
    iterate = adaround.Learner.iterate

    def dying(self, state):
        if state.iteration == iterations:
            raise Stop
        iterate(self, state)

    monkeypatch.setattr(adaround.Learner, "iterate", dying)


def joint_of(problem):
    """Activation quantizers for the block, their steps far from right."""
    input_of = {linear.name: shared_input(linear) for linear in problem.linears}
    quantizers = {name: range_quantizer(-4.0, 4.0, 8) for name in input_of.values()}
    return Joint(quantizers, input_of, learning_rate=1e-3, drop=0.5)


@pytest.mark.parametrize(
    ("recipe", "joint"), [(SHORT, False), (replace(SHORT, rows_at_once=2), True)]
)
def test_a_stopped_run_goes_on_and_ends_with_the_same_bits(
    problem, rtn, tmp_path, monkeypatch, recipe, joint
):
    more = {"joint": joint_of(problem)} if joint else {}
    straight = learn(problem, recipe, rtn[0], seed=7, **more)
    monkeypatch.setattr(learning, "SAVE_SECONDS", 0.0)
    resume = Resume(tmp_path / ".mm00.resume.safetensors", "k")
    with monkeypatch.context() as patched:
        stop_after(patched, 27)
        with pytest.raises(Stop):
            learn(problem, recipe, rtn[0], seed=7, resume=resume, **more)
    kept = resume.load()
    assert kept is not None
    assert kept.iteration == 27
    again = learn(problem, recipe, rtn[0], seed=7, resume=resume, **more)
    assert len(again.step_sizes) == (8 if joint else 0)
    assert_equal(again, straight)


def test_the_model_keeps_its_weights(problem, rtn):
    block = problem.block.module
    before = {name: mx.array(value) for name, value in parameters(block).items()}
    learn(problem, replace(SHORT, iterations=3, warmup=0.0), rtn[0], seed=0)
    assert same(before.values(), parameters(block).values())


def test_every_training_row_is_dealt_once_an_epoch(problem):
    count = len(problem.train)
    first, second = (
        [batch_rows(problem, 8, 3, iteration) for iteration in range(start, start + count // 8)]
        for start in (0, count // 8)
    )
    for epoch in (first, second):
        assert sorted(np.concatenate(epoch)) == sorted(problem.train)
    assert not np.array_equal(np.concatenate(first), np.concatenate(second))
    assert np.array_equal(batch_rows(problem, 8, 3, 2), first[2])
    assert sorted(batch_rows(problem, 10_000, 3, 0)) == sorted(problem.train)


def test_beta_is_annealed_from_20_to_2_in_even_numbers():
    betas = [annealed_beta(step / 100) for step in range(101)]
    assert sorted(set(betas)) == list(range(2, 21, 2))
    assert betas == sorted(betas, reverse=True)


def slopes_of(problem, rows_at_once):
    """Error and slopes of the weights over one batch of 8, in units of the error."""
    recipe = replace(RECIPE, rows_at_once=rows_at_once)
    learner = Learner(problem, starts(problem), recipe, 0.01, seed=2)
    with weights_restored(problem):
        rows = batch_rows(problem, 8, 2, 0)
        # Full-precision weights have no error: that of a small step away from them is asked for.
        moved = [weight + 0.01 for weight in problem.weights]
        total, slopes = learner._batch_slopes(moved, learner.start(), rows)
        mx.eval(total, slopes)
    parts = 8 // (rows_at_once or 8)
    return total.item() / parts, [slope / parts for slope in slopes]


@pytest.mark.parametrize("rows_at_once", [1, 2, 4])
def test_parts_of_a_batch_add_up_to_its_gradient(problem, rows_at_once):
    error, slopes = slopes_of(problem, None)
    in_parts, others = slopes_of(problem, rows_at_once)
    # float32 sums over 8 rows and all tokens, in another order.
    assert in_parts == pytest.approx(error, rel=1e-5)
    for one, other in zip(slopes, others, strict=True):
        assert mx.max(mx.abs(one - other)).item() < 1e-4 * mx.max(mx.abs(one)).item()


def test_parts_of_a_batch_lead_to_the_same_codes(problem, rtn):
    one = learn(problem, SHORT, rtn[0], seed=5)
    other = learn(problem, replace(SHORT, rows_at_once=2), rtn[0], seed=5)
    whole, parts = one.codes, other.codes
    moved = sum(
        mx.sum(one != near).item() for one, near in zip(whole, rtn_codes(problem), strict=True)
    )
    differing = sum(mx.sum(one != part).item() for one, part in zip(whole, parts, strict=True))
    # Rounding decides only where alpha ends within 1e-3 of 0, a hundredth of an iteration's step.
    assert moved > 100
    assert differing <= 0.01 * moved
    assert errors(problem, parts, problem.train) == pytest.approx(
        errors(problem, whole, problem.train), rel=0.01
    )
    pairs = zip(one.state.history, other.state.history, strict=True)
    assert all(one["error"] == pytest.approx(part["error"], rel=0.01) for one, part in pairs)
