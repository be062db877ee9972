"""The benchmark at the real size, on the small run: the same blocks, and a record of everything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from ditquant import job_times

ROOT = Path(__file__).parents[2]
FEW = {"recipes": {"best": {"iterations": 6, "batch_size": 4}}}


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import real_size_blocks
    import real_size_record

    return real_size_blocks, real_size_record


@pytest.fixture
def walked(scripts, finished, tmp_path):
    """Arguments that walk through the finished run's blocks."""
    few = tmp_path / "few.yaml"
    few.write_text(yaml.safe_dump(FEW))
    configuration = finished.folder / "config.yaml"
    return ["--configfile", str(configuration), str(few), "--run", str(finished.results)]


def result(finished, recipe, block):
    path = finished.results / "weights" / recipe / "blocks" / f"{block}.json"
    return json.loads(path.read_text("utf-8"))


def test_blocks_are_those_of_the_workflow(scripts, walked, finished):
    rows = scripts[0].main([*walked, "--recipes", "rtn", "adaround", "--dtypes", "float32"])
    assert [(row["block"], row["recipe"]) for row in rows] == [
        ("mm00", "rtn"), ("mm00", "adaround"), ("mm01", "rtn"), ("mm01", "adaround"),
    ]  # fmt: skip
    for row in rows:
        document = result(finished, row["recipe"], row["block"])
        errors = document["hard_error"]
        assert row["rtn"] == errors["rtn"]["held_out"]
        assert row["result"] == errors["result"]["held_out"]
        assert row["kept_error"] == document["kept_error"]["held_out"]
        assert row["ratio"] == row["kept_error"] / row["rtn"]


def test_a_chained_recipe_walks_through_all_blocks(scripts, walked, finished, tmp_path):
    path = tmp_path / "numbers" / "blocks.json"
    asked = [*walked, "--blocks", "mm01", "--recipes", "rtn", "best", "--dtypes", "float32"]
    rows = scripts[0].main([*asked, "--json", str(path)])
    assert [(row["block"], row["recipe"]) for row in rows] == [
        ("mm00", "best"), ("mm01", "rtn"), ("mm01", "best"),
    ]  # fmt: skip
    assert json.loads(path.read_text("utf-8"))["rows"] == rows
    # Behind a quantized block other streams enter, on which rounding to nearest errs more.
    first, nearest, second = rows
    assert first["rtn"] == result(finished, "rtn", "mm00")["hard_error"]["rtn"]["held_out"]
    assert second["rtn"] > nearest["rtn"]
    assert first["ratio"] < 1


def test_another_dtype_gives_nearly_the_same(scripts, walked):
    rows = scripts[0].main([*walked, "--blocks", "mm00", "--recipes", "rtn", "--dtypes", "float16"])
    (single,) = scripts[0].main(
        [*walked, "--blocks", "mm00", "--recipes", "rtn", "--dtypes", "float32"]
    )
    assert rows[0]["dtype"] == "float16"
    assert rows[0]["rtn"] != single["rtn"]
    # Round-to-nearest codes of the same weights, judged in float32: only the streams differ.
    assert rows[0]["rtn"] == pytest.approx(single["rtn"], rel=2e-3)


def test_a_recipe_that_fails_ends_no_other(scripts, walked, monkeypatch):
    blocks, record = scripts
    quantize = blocks.quantize_block

    def refuse(problem, recipe, seed):
        if recipe.rounding != "rtn":
            raise blocks.UserError("not finite")
        return quantize(problem, recipe, seed)

    monkeypatch.setattr(blocks, "quantize_block", refuse)
    rows = blocks.main([*walked, "--recipes", "best", "rtn", "--dtypes", "float32"])
    told = [(row["block"], row["recipe"], row.get("error")) for row in rows]
    # What is behind the failed block cannot be known.
    assert told == [
        ("mm00", "best", "not finite"), ("mm00", "rtn", None), ("mm01", "rtn", None),
    ]  # fmt: skip
    assert record.by_recipe(rows)["best"]["failed"] == 1


def test_what_does_not_exist_is_told(scripts, walked, tmp_path, capsys):
    with pytest.raises(SystemExit):
        scripts[0].main([*walked, "--blocks", "mm07"])
    assert "no such blocks: mm07; there are mm00 to mm01" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        scripts[0].main([*walked[:-1], str(tmp_path)])
    assert "make the run first" in capsys.readouterr().err


def test_the_record_holds_every_job_and_byte(scripts, finished):
    record = scripts[1].gather(finished.results)
    rules = record["rules"]
    assert {"generate_calibration", "optimize_block rtn", "optimize_block adaround"} <= set(rules)
    jobs = list((finished.results / "benchmarks").rglob("*.tsv"))
    assert sum(row["jobs"] for row in rules.values()) == len(jobs)
    for name, row in rules.items():
        parts = sum(row[part] for part in job_times.PARTS)
        # Snakemake's clock starts before the process and stops after its end.
        assert 0 < parts < row["seconds"] / row["jobs"], name
    assert rules["generate_calibration"]["loading"] > 0
    assert rules["generate_calibration"]["device_gb"] > 0
    files = [path for path in finished.results.rglob("*") if path.is_file()]
    whole = record["disk"].pop("all")
    assert sum(row["files"] for row in record["disk"].values()) == len(files) == whole["files"]
    size = sum(path.stat().st_size for path in files) / 1e9
    assert sum(row["gb"] for row in record["disk"].values()) == pytest.approx(size)
    assert {"block_io", "weights/rtn/blocks", "weights/adaround/model"} <= set(record["disk"])
    assert record["learned"]["adaround"]["blocks"] == 2
    assert record["run"]["all"]["disk_gb"] == pytest.approx(size)
    assert "blocks" not in record  # nobody walked through them
