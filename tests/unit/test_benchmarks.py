"""Every script of benchmarks/ runs at a small size and writes its record."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from ditquant.artifacts import write_json
from ditquant.evaluation.table import FORMAT

FOLDER = Path(__file__).parents[2] / "benchmarks"
# These look at whole runs, and are run by hand: `make faults` and what it is made of.
OF_RUNS = {"faults", "content_hashes", "digest_time"}


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a script of benchmarks/."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.fixture
def record(tmp_path):
    """The path of a record, and what reads a section of it."""
    path = tmp_path / "record.json"

    def rows(section: str) -> dict:
        return json.loads(path.read_text())[section]["rows"]

    return path, rows


def test_every_script_has_a_test():
    text = "".join(path.read_text("utf-8") for path in FOLDER.parent.glob("tests/**/test_*.py"))
    imports = re.findall(r"(?:benchmark|import_module)\(\"(\w+)\"\)|^ +import (\w+)$", text, re.M)
    tested = {name for names in imports for name in names}
    assert {path.stem for path in FOLDER.glob("*.py")} - tested == OF_RUNS


def test_every_granularity_is_timed_beside_plain_steps(benchmark, record, monkeypatch):
    path, rows = record
    time = benchmark("activation_time")
    monkeypatch.setattr(time, "STEPS", 3)
    monkeypatch.setattr(time, "SIGMAS", time.SIGMAS[:3])
    time.main(["--size", "small", "--repeat", "2", "--json", str(path)])
    assert list(rows("small")) == list(time.CONFIGS)
    for row in rows("small").values():
        assert row["ratio"] == pytest.approx(row["simulated_ms"] / row["plain_ms"], rel=1e-3)
        assert row["first_ratio"] > 0
        assert row["differing"] == 0


def test_every_variant_of_packed_layers_computes_the_same_in_less_memory(benchmark, record):
    path, rows = record
    time = benchmark("forward_time")
    time.main(["--size", "small", "--depth", "1", "--repeat", "1", "--json", str(path)])
    found = rows("packed")
    assert list(found) == list(time.VARIANTS)
    for variant in time.PACKED:
        # float32 sums in other orders, and 8-bit values that the kernel does not round.
        assert found[variant]["difference"] < 1e-6, variant
        assert found[variant]["active_ratio"] < 0.5, variant
    named = [line.split()[0] for line in time.__doc__.splitlines() if line[:4] == " " * 4]
    assert [name for name in named if name in time.VARIANTS] == list(time.VARIANTS)


def test_products_are_measured_up_to_where_the_kernel_is_slower(benchmark, record):
    path, rows = record
    benchmark("kernel_rows").main(["--width", "128", "--repeat", "1", "--json", str(path)])
    assert len(rows("rows")) == 4
    for row in rows("rows").values():
        assert row["rows"] < row["tried"] or row["kernel_ms"] < row["dequantized_ms"]


def test_imports_are_timed_without_the_interpreters_start(benchmark, record):
    path, rows = record
    time = benchmark("import_time")
    time.main(["--repeat", "1", "--only", "kind: m*", "--json", str(path)])
    assert list(rows("scripts")) == ["kind: mlx"]
    script = time.SCRIPTS / "evaluate_variant.py"
    assert "from ditquant.job import" in time.import_statements(script)


def test_the_demo_model_and_its_judge_are_measured(benchmark, record, tmp_path):
    path, rows = record
    captions = [
        {"caption": "a small red star on a navy background", "judge": {"ok": True, "problems": []}},
        {"caption": "a small red ring on a pink background",
         "judge": {"ok": False, "problems": ["there are 2 objects, not 1", "it is large"]}},
    ]  # fmt: skip
    write_json(tmp_path / "evaluation" / "full.json", FORMAT, {"captions": captions})
    accuracy = benchmark("demo_accuracy")
    accuracy.main([str(tmp_path), "--drawings", "12", "--json", str(path)])
    judged = rows("judge")
    assert judged["right captions"] == {"tried": 12, "passed": 12}
    assert sum(row["tried"] for row in judged.values()) == 24
    assert sum(row["passed"] for row in judged.values()) == 12
    model = rows("model")["full"]
    assert (model["captions"], model["right"], model["accuracy"]) == (2, 1, 0.5)
    assert model["low"] < 0.5 < model["high"]
    assert rows("wrong") == {
        "1": {
            "caption": captions[1]["caption"],
            "problems": "there are 2 objects, not 1; it is large",
        }
    }


def test_a_share_has_wilsons_interval(benchmark):
    low, high = benchmark("demo_accuracy").wilson(50, 100)
    assert (low, high) == pytest.approx((0.4038, 0.5962), abs=1e-4)


def test_errors_are_paired(benchmark):
    errors, baseline = np.array([1.0, 4.0, 2.0]), np.array([2.0, 2.0, 4.0])
    row = benchmark("evaluation").comparison(errors, baseline)
    assert row["ratio"] == 1.0
    assert row["geometric"] == pytest.approx(0.5 ** (1 / 3))
    assert row["better"] == 2
    assert row["low"] <= row["ratio"] <= row["high"]
