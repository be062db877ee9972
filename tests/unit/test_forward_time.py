"""The benchmarks of packed layers, at a small size: every variant computes the same."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def forward_time(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import forward_time

    return forward_time


def test_every_variant_computes_the_same_in_less_memory(forward_time, tmp_path, capsys):
    path = tmp_path / "numbers.json"
    forward_time.main(["--size", "small", "--depth", "1", "--repeat", "1", "--json", str(path)])
    rows = json.loads(path.read_text())["variants"]
    assert set(rows) >= {"full", "stock", "dequantize", "table", "compiled"}
    for variant, row in rows.items():
        assert row["forward_seconds"] > 0, variant
        if variant in forward_time.PACKED:
            # float32 sums in other orders, and 8-bit values that the kernel does not round.
            assert row["difference"] < 1e-6, variant
            assert row["active_bytes_ratio"] < 0.5, variant
    printed = capsys.readouterr().out
    assert all(f"\n{variant} " in printed for variant in rows)


def test_products_are_measured_up_to_where_the_kernel_is_slower(forward_time, capsys):
    import kernel_rows

    measured = kernel_rows.main(["--width", "128", "--repeat", "1"])["products"]
    shapes = [(128, 128, 4), (512, 128, 4), (128, 512, 4), (768, 128, 8)]
    assert list(dict.fromkeys((m["outputs"], m["inputs"], m["bits"]) for m in measured)) == shapes
    for one, following in itertools.pairwise(measured):
        if following["rows"] > one["rows"]:
            assert one["kernel_seconds"] < one["dequantized_seconds"]
    assert capsys.readouterr().out.count("the kernel is faster up to") == len(shapes)


def test_a_few_variants_alone(forward_time):
    record = forward_time.main(
        ["--size", "small", "--depth", "1", "--repeat", "1", "--variants", "full", "table"]
    )
    assert set(record["variants"]) == {"full", "table"}
    assert record["size"]["depth"] == 1


def test_the_docstring_names_every_variant(forward_time):
    named = [line.split()[0] for line in forward_time.__doc__.splitlines() if line[:4] == " " * 4]
    assert [name for name in named if name in forward_time.VARIANTS] == list(forward_time.VARIANTS)
