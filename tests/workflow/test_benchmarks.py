"""The benchmarks that read a finished run find what its own table says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ditquant.evaluation.table import read_summary

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import demo_run
    import evaluation

    return evaluation, demo_run


def test_an_evaluated_run_has_its_record(scripts, finished, tmp_path):
    path = tmp_path / "record.json"
    scripts[0].main([str(finished.results), "--section", "tiny", "--json", str(path)])
    record = json.loads(path.read_text())
    rows = record["tiny"]["rows"]
    summary = {
        row["variant"]: row for row in read_summary(finished.results / "evaluation/summary.csv")
    }
    assert list(rows) == list(summary)
    for name, row in rows.items():
        assert row["error"] == pytest.approx(
            summary[name]["latent_relative_error_median"], rel=1e-4
        )
        if summary[name]["baseline"]:
            assert row["ratio"] == pytest.approx(summary[name]["latent_error_ratio"], rel=1e-4)
    jobs = (finished.results / "benchmarks" / "optimize_block").glob("adaround-mm*.tsv")
    seconds = [float(path.read_text().splitlines()[1].split("\t")[0]) for path in jobs]
    assert rows["adaround-weights"]["seconds"] == pytest.approx(sum(seconds))
    assert "seconds" not in rows["adaround-a8"]
    blocks = record["tiny-blocks"]["rows"]
    assert blocks["rtn"] == {"mm00": 1.0, "mm01": 1.0}
    assert set(blocks["adaround"]) == {"mm00", "mm01", "binary"}


def test_all_variants_can_have_one_baseline(scripts, finished):
    rows = scripts[0].variant_rows(finished.results, "adaround-weights")
    assert rows["adaround-weights"]["ratio"] == 1.0
    assert "ratio" not in rows["full"]


def test_a_demo_run_has_its_record(scripts, finished, tmp_path):
    path = tmp_path / "record.json"
    scripts[1].main(["--run", str(finished.results), "--wall-seconds", "12", "--json", str(path)])
    record = {name: section["rows"] for name, section in json.loads(path.read_text()).items()}
    assert record["run"]["demo"]["seconds"] == 12
    for row in record["blocks"].values():
        assert row["ratio"] == pytest.approx(row["result"] / row["rtn"], rel=1e-3)
    variants = record["variants"]
    expected = variants["adaround-a8"]["error"] / variants["adaround-weights"]["error"]
    assert variants["adaround-a8"]["ratio"] == pytest.approx(expected, rel=1e-3)
    assert record["stages"]["optimize_block"]["jobs"] >= len(record["blocks"])
