"""The benchmarks of activations measure what they say."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

NAMES = ("activation_time", "activations", "new_sigma_time")
FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return {name: importlib.import_module(name) for name in NAMES}


def test_every_granularity_is_timed_beside_plain_steps(benchmarks, tmp_path):
    path = tmp_path / "times.json"
    time = benchmarks["activation_time"]
    record = time.main(["--size", "small", "--repeat", "2", "--json", str(path)])
    assert record == json.loads(path.read_text())
    assert list(record["rows"]) == list(time.CONFIGS)
    for row in record["rows"].values():
        plain, simulated = row["plain_seconds"], row["simulated_seconds"]
        assert row["ratio"] == pytest.approx(simulated / plain)
        plain, simulated = (row[f"first_picture_{kind}_seconds"] for kind in ("plain", "simulated"))
        assert row["first_picture"] == pytest.approx(simulated / plain)
        assert row["differing"] == 0


def test_making_numbers_is_timed_both_ways(benchmarks, tmp_path):
    path = tmp_path / "times.json"
    record = benchmarks["new_sigma_time"].main(["--blocks", "2", "--json", str(path)])
    assert record == json.loads(path.read_text())
    # Two blocks of four inputs for each stream, but for the last text block's one.
    assert record["inputs"] == 13
    for row in record["rows"].values():
        assert min(row["arrays"], row["vector"]) > 0
        assert row["ratio"] == pytest.approx(row["arrays"] / row["vector"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("full:*", ("full", ["*"], [28])),
        ("best:a8*,t65*@20,50", ("best", ["a8*", "t65*"], [20, 50])),
    ],
)
def test_rows_name_a_recipe_configurations_and_steps(benchmarks, text, expected):
    assert benchmarks["activations"].parse_row(text) == expected
