"""What the linears of a block read: the same as by hand, once for those that share it."""

from __future__ import annotations

import numpy as np
import pytest

from ditquant.backend import mx
from ditquant.network.blocks import shared_input, tapped
from ditquant.weights.layer_inputs import sampled_inputs, second_moments
from support.problems import full_recipe, make_problem


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    return make_problem(tmp_path_factory.mktemp("block_io"), full_recipe("rtn"))


def read_by_hand(problem, row):
    """Linear's name -> its input in one row, (tokens, channels)."""
    seen = {}
    for stream, parameters in zip(problem.block.streams.values(), problem.modulation, strict=True):
        stream.set_modulation(parameters[row : row + 1])

    def note(linear, x):
        seen[linear.name] = np.array(x.reshape(-1, x.shape[-1]), np.float64)

    with tapped(problem.linears, note):
        mx.eval(problem.block([one[row : row + 1] for one in problem.data.entering]))
    return seen


def test_query_key_and_value_share_an_input(problem):
    seen = read_by_hand(problem, 2)
    by_input = {}
    for linear in problem.linears:
        by_input.setdefault(shared_input(linear), []).append(seen[linear.name])
    assert sorted(map(len, by_input.values())) == [1, 1, 1, 1, 1, 1, 3, 3]
    for arrays in by_input.values():
        assert all(np.array_equal(arrays[0], other) for other in arrays)


def test_second_moments_are_sums_over_tokens(problem):
    # More rows than are passed at once, so that parts are added up.
    rows = problem.train[:20]
    moments = second_moments(problem, rows)
    expected = {}
    for row in rows:
        for linear in problem.linears:
            x = read_by_hand(problem, int(row))[linear.name]
            name = shared_input(linear)
            if linear.attribute not in ("k_proj", "v_proj"):
                expected[name] = expected.get(name, 0) + x.T @ x
    assert set(moments) == set(expected)
    for name, matrix in expected.items():
        # float32 activations in batches of another size.
        assert np.abs(moments[name] - matrix).max() < 1e-5 * np.abs(matrix).max(), name


def test_samples_are_drawn_from_all_rows(problem):
    rows = problem.train[:20]
    samples = sampled_inputs(problem, rows, 30, seed=3)
    again, other = (sampled_inputs(problem, rows, 30, seed=seed) for seed in (3, 4))
    stored = [read_by_hand(problem, int(row)) for row in rows]
    for linear in problem.linears:
        tokens = np.array(samples[shared_input(linear)], np.float64)
        assert tokens.shape == (30, linear.module.weight.shape[1])
        known = np.concatenate([seen[linear.name] for seen in stored])
        distance = np.abs(tokens[:, None] - known).max(axis=2).min(axis=1)
        assert distance.max() < 1e-4 * np.abs(known).max(), linear.name
        assert mx.array_equal(samples[shared_input(linear)], again[shared_input(linear)])
        assert not mx.array_equal(samples[shared_input(linear)], other[shared_input(linear)])


def test_fewer_tokens_than_asked_for(problem):
    samples = sampled_inputs(problem, problem.train[:2], 10_000, seed=0)
    text = problem.data.text_tokens
    assert samples["mm00.txt.attn.qkv"].shape == (2 * text, 64)
