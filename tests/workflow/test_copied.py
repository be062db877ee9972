"""Results that were copied without their times redo nothing, and hide nothing that was changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import yaml

from ditquant.planning.snakemake_records import SnakemakeRecords
from ditquant.records import FOLDER, read_records
from workflow.conftest import Workspace


def copied(original: Workspace, folder: Path, *names: str, run: str = "") -> Workspace:
    """What lies in a workspace, copied to another folder in the worst order of times.

    Args:
        names: what is copied: ".snakemake", "results".
        run: new name of the run.
    """
    folder.mkdir()
    workspace = Workspace(folder, yaml.safe_load(yaml.safe_dump(original.config)), original.root)
    for name in names:
        shutil.copytree(original.folder / name, folder / name, copy_function=shutil.copyfile)
    if run:
        workspace.results.rename(folder / "results" / run)
        workspace.config["run"] = run
    files = [path for path in original.results.rglob("*") if path.is_file()]
    files.sort(key=lambda path: path.stat().st_mtime_ns)
    for age, path in enumerate(files):  # what was made last is the oldest
        os.utime(workspace.results / path.relative_to(original.results), (2e9 - age, 2e9 - age))
    return workspace


@pytest.mark.parametrize(
    ("names", "run"),
    [((".snakemake", "results"), ""), (("results",), ""), (("results",), "renamed")],
    ids=["everything", "results", "results, renamed"],
)
def test_a_copy_redoes_nothing(finished, tmp_path, names, run):
    assert copied(finished, tmp_path / "copy", *names, run=run).plan() == {}


def test_a_model_that_was_moved_redoes_nothing(finished, model_folder, tmp_path):
    copy = finished.copy(tmp_path / "copy")
    copy.config["model"]["checkpoint"] = str(shutil.copytree(model_folder, tmp_path / "moved"))
    assert copy.plan() == {}
    copy.snakemake("results/tiny/images/full/p00.png", "--forcerun", "generate_image")


def test_another_configuration_redoes_what_it_changes_and_nothing_else(finished, tmp_path):
    copy = copied(finished, tmp_path / "copy", "results")
    copy.config["recipes"]["adaround"]["iterations"] += 1
    variants = 3  # of adaround: -weights, -a8, -multitier
    assert copy.plan() == {
        "optimize_block": 2,
        "assemble_weights": 1,
        "plot_history": 1,
        "evaluate_variant": variants,
        "summarize_evaluation": 1,
        "generate_image": 2 * variants,
        "compare_images": 2 * variants,
        "summarize_differences": variants,
        "render_report": 1,
        "all": 1,
    }


def test_what_was_changed_before_the_copy_is_still_changed(finished, tmp_path):
    """Streams of other steps than the blocks were made from, by a run of the streams alone."""
    original = finished.copy(tmp_path / "original")
    original.config["weights"]["stride"] = 3
    original.snakemake(*(f"results/tiny/block_io/000{image}.safetensors" for image in range(2)))
    copy = copied(original, tmp_path / "copy", "results")
    plan = copy.plan("weights")
    assert plan == {"optimize_block": 2, "assemble_weights": 1, "plot_history": 1, "weights": 1}


def test_results_that_no_record_tells_of_are_made_again(finished, workspace, tmp_path):
    copy = copied(finished, tmp_path / "copy", "results")
    shutil.rmtree(copy.results / FOLDER)
    assert copy.plan() == workspace.plan()


def test_every_job_records_what_snakemake_does(finished, monkeypatch):
    monkeypatch.chdir(finished.folder)
    records = [record for _, record in read_records(Path("results/tiny"))]
    made = {
        str(path.relative_to(finished.folder))
        for path in finished.results.rglob("*.*")
        if path.suffix not in (".log", ".tsv") and FOLDER not in path.parts
    }
    assert {path for record in records for path in record.outputs} == made
    snakemake = SnakemakeRecords()
    for record in records:
        assert all(snakemake.agrees(path, record) for path in record.outputs), record.rule
