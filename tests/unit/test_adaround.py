"""Learned rounding: better than RTN on rows it has not seen, and the same bits after a stop."""

from __future__ import annotations

import numpy as np
import pytest

from ditquant import adaround
from ditquant.adaround import Options, annealed_beta, batch_rows
from ditquant.backend import mx
from ditquant.block_io import read_block
from ditquant.grids import Grid, steps_of
from ditquant.learning_state import load_state
from ditquant.reconstruct import block_error, block_problem, quantized_weights
from ditquant.roundings import rtn_codes
from support.block_data import write_block_io
from support.models import build_mmdit, parameters

OPTIONS = Options(iterations=100, batch_size=8, learning_rate=0.08, regularizer=1000.0, warmup=0.2)
IMAGES = 5
SHORT = Options(iterations=40, batch_size=4, learning_rate=0.05, regularizer=500.0, warmup=0.2)


def make_problem(folder, grid, dtype=mx.float32):
    model = build_mmdit(seed=4)
    model.set_dtype(dtype)
    files = [
        write_block_io(folder / f"{i}.safetensors", model, seed=i, dtype=dtype)
        for i in range(IMAGES)
    ]
    data = read_block(files, ["mm00", "mm01"], "mm00")
    return block_problem(model, "mm00", data, lambda name: grid, holdout=0.2)


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    return make_problem(tmp_path_factory.mktemp("block_io"), Grid("group", 4, 32))


def learn(problem, *arguments, **options):
    pairs = zip(problem.weights, problem.scales, strict=True)
    return adaround.learn(problem, [steps_of(*pair) for pair in pairs], *arguments, **options)


def errors(problem, codes, rows):
    return block_error(problem, quantized_weights(problem, codes), rows)


@pytest.fixture(scope="module")
def rtn(problem):
    codes = rtn_codes(problem)
    return errors(problem, codes, problem.train), errors(problem, codes, problem.held_out)


def same(left, right):
    return all(mx.array_equal(a, b).item() for a, b in zip(left, right, strict=True))


def test_learned_rounding_beats_nearest_on_unseen_rows(problem, rtn):
    codes, state = learn(problem, OPTIONS, rtn[0], seed=1)
    assert errors(problem, codes, problem.held_out) < 0.9 * rtn[1]
    assert errors(problem, codes, problem.train) < 0.7 * rtn[0]
    last = state.history[-1]
    assert last["iteration"] == OPTIONS.iterations
    assert last["binary_share"] >= 0.9
    for code, near in zip(codes, rtn_codes(problem), strict=True):
        # Only the two neighbours of a weight are on offer.
        assert mx.max(mx.abs(code - near)).item() <= 1


def test_channel_grid_learns_too(tmp_path):
    channel = make_problem(tmp_path, Grid("channel", 4))
    nearest = rtn_codes(channel)
    start = errors(channel, nearest, channel.train)
    codes, _ = learn(channel, OPTIONS, start, seed=1)
    unseen = errors(channel, nearest, channel.held_out)
    assert errors(channel, codes, channel.held_out) < 0.9 * unseen


def test_float16_gradients_do_not_vanish(tmp_path):
    half = make_problem(tmp_path, Grid("group", 4, 32), mx.float16)
    nearest = rtn_codes(half)
    start = errors(half, nearest, half.train)
    codes, state = learn(half, OPTIONS, start, seed=1)
    assert all(alpha.dtype == mx.float32 for alpha in state.alphas)
    assert errors(half, codes, half.train) < 0.7 * start


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


def test_a_stopped_run_goes_on_and_ends_with_the_same_bits(problem, rtn, tmp_path, monkeypatch):
    straight, whole = learn(problem, SHORT, rtn[0], seed=7)
    resume = tmp_path / ".mm00.resume.safetensors"
    with monkeypatch.context() as patched:
        stop_after(patched, 27)
        with pytest.raises(Stop):
            learn(problem, SHORT, rtn[0], seed=7, resume=resume, key="k")
    kept = load_state(resume, "k")
    assert kept is not None
    assert 0 < kept.iteration <= 27
    codes, state = learn(problem, SHORT, rtn[0], seed=7, resume=resume, key="k")
    assert same(codes, straight)
    assert same(state.alphas, whole.alphas)
    assert state.history == whole.history


def test_a_stale_or_broken_state_is_ignored(problem, rtn, tmp_path):
    resume = tmp_path / ".mm00.resume.safetensors"
    learn(problem, SHORT, rtn[0], seed=8, resume=resume, key="other settings")
    straight, _ = learn(problem, SHORT, rtn[0], seed=7)
    codes, _ = learn(problem, SHORT, rtn[0], seed=7, resume=resume, key="k")
    assert same(codes, straight)
    resume.write_bytes(resume.read_bytes()[:1000])
    assert load_state(resume, "k") is None


def test_the_model_keeps_its_weights(problem, rtn):
    block = problem.block.module
    before = {name: mx.array(value) for name, value in parameters(block).items()}
    learn(problem, Options(3, 4, 0.1, 100.0, 0.0), rtn[0], seed=0)
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
