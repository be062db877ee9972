"""The benchmark of an iteration, at a small size: every part runs, and ours computes the same."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from ditquant.backend import mx
from ditquant.weights import adaround
from ditquant.weights.reconstruct import (
    block_error,
    block_problem,
    quantized_weights,
    weights_restored,
)
from ditquant.weights.roundings import rtn_codes

ROOT = Path(__file__).parents[2]
ITERATIONS = 40


@pytest.fixture
def iteration_time(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import iteration_time

    return iteration_time


def test_every_part_is_measured_and_written(iteration_time, tmp_path, capsys):
    path = tmp_path / "numbers.json"
    options = ["--size", "small", "--repeat", "1", "--compare", "2", "--json", str(path)]
    iteration_time.main(options)
    record = json.loads(path.read_text())
    rows = record["rows"]
    layouts = {f"batch-{batch}-{at_once or batch}" for batch, at_once in iteration_time.LAYOUTS}
    assert {"block forward", "block forward + backward", "plain", *layouts} <= set(rows)
    assert {"errors rtn", "errors plain", "errors ours"} <= set(rows)
    for name, row in rows.items():
        if "seconds" in row:
            assert row["seconds"] > 0, name
            assert row["peak_bytes"] >= row["active_bytes"] > 0, name
    assert rows["plain"]["times_ours"] > 0
    assert rows["errors plain"]["iterations"] == rows["errors ours"]["iterations"] == 2
    # float32 on the CPU: exp(-30000) is 0, so only sums are in another order.
    for name in ("filled", "extended"):
        assert rows[f"  error of attention {name}"]["relative_error"] < 1e-12
    printed = capsys.readouterr().out
    assert all(f"\n{name} " in printed for name in rows)


def test_a_part_that_does_not_run_ends_no_other(iteration_time, monkeypatch, capsys):
    def refuse(*arguments, **options):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(iteration_time, "iterations_of", refuse)
    record = iteration_time.main(["--size", "small", "--repeat", "1", "--compare", "1"])
    assert "batch-8-8" not in record["rows"]
    assert "errors ours" in record["rows"]
    assert "does not run here: no kernel" in capsys.readouterr().out


def test_the_plain_loop_chooses_the_same_codes(iteration_time):
    """The same mathematics: at most a few weights that stand between two codes end elsewhere."""
    import plain_adaround

    model = iteration_time.build(iteration_time.SIZES["small"], mx.float32)
    data = iteration_time.random_data(model, iteration_time.SIZES["small"], mx.float32)
    problem = block_problem(model, "mm00", data, lambda name: iteration_time.GRID, holdout=0.2)

    def error_of(codes):
        return block_error(problem, quantized_weights(problem, codes), problem.train)

    rtn = error_of(rtn_codes(problem))
    options = iteration_time.options_of(4, None, ITERATIONS)
    loop = plain_adaround.plain_loop(problem, options, rtn, seed=1)
    with weights_restored(problem):
        for iteration in range(ITERATIONS):
            loop.iterate(iteration)
    plain = loop.codes()
    starts = plain_adaround.starts(problem)
    ours = adaround.learn(problem, starts, options, rtn, seed=1).codes
    count = sum(code.size for code in ours)
    differing = sum(mx.sum(one != other).item() for one, other in zip(ours, plain, strict=True))
    moved = sum(
        mx.sum(one != near).item() for one, near in zip(ours, rtn_codes(problem), strict=True)
    )
    # float32 rounding is 1e-6 of a gradient; it decides for the weights whose alpha ends that near
    # to 0. Learning itself moves some percent of the weights.
    assert moved > 0.02 * count
    assert differing <= 0.01 * moved
    # A step of one code in one weight has 12 times the weight's share of RTN's error (a uniform
    # error's mean square is a twelfth of the step's), and adds to the rest by Cauchy-Schwarz.
    error = error_of(plain)
    one_code = 12 * rtn / count
    tolerance = differing * (2 * math.sqrt(error * one_code) + one_code)
    assert error < 0.8 * rtn
    assert error_of(ours) <= error + tolerance
