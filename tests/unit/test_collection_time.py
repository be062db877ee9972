"""The benchmark of the collection, at a small size: all that it names is measured and written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ditquant.backend import mx

ROOT = Path(__file__).parents[2]


@pytest.fixture
def collection_time(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import collection_time

    return collection_time


@pytest.mark.parametrize("size", ["small", "demo"])
def test_both_ways_and_all_parts_are_measured(collection_time, size, tmp_path, capsys):
    path = tmp_path / "numbers.json"
    collection_time.main(["--size", size, "--steps", "2", "--images", "2", "--json", str(path)])
    record = json.loads(path.read_text())
    for kind in ("wall", "processor"):
        row = record[kind]
        assert row["plain_seconds"] > 0
        low, middle, high = row["ratio_quartiles"]
        assert 0 < low <= middle <= high
    # Two blocks of two streams, whose last text stream ends behind its attention; or six.
    assert record["inputs"] == {"small": 13, "demo": 45}[size]
    assert set(record["nanoseconds_a_value"]) == set(collection_time.PARTS)
    printed = capsys.readouterr().out
    assert all(f"\n  {part} " in printed for part in collection_time.PARTS)
    assert all(f"    {part}  " in collection_time.__doc__ for part in collection_time.PARTS)


def test_the_ordinary_scatter_counts_the_same(collection_time):
    x = mx.random.normal((30, 40))
    assert mx.array_equal(collection_time.bins_by_at(x), collection_time.count_bins(x))
