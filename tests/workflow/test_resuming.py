"""Adding, redoing, interrupting, killing, changing code: what is made again, and what is not."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from workflow.conftest import ROOT, Workspace, signal_group, wait_for


def test_more_images_make_only_the_new_ones_and_fewer_redo_only_the_lists(finished, tmp_path):
    copy = finished.copy(tmp_path / "copy")
    copy.config["num_images"] = 2
    assert copy.plan("calibrate") == {"list_calibration": 1, "calibrate": 1}
    before = copy.digests()
    copy.config["num_images"] = 5
    plan = copy.plan("calibrate")
    assert plan == {"generate_calibration": 2, "list_calibration": 1, "calibrate": 1}
    copy.snakemake("calibrate")
    after = copy.digests()
    changed = {name for name in after if after[name] != before.get(name)}
    new = {f"calibration/000{n}.{end}" for n in (3, 4) for end in ("safetensors", "png")}
    assert changed == new | {"calibration/manifest.json"}


def append_prompt(workspace: Workspace, folder: Path) -> None:
    text = Path(workspace.config["prompts"]["calibration"]).read_text()
    (folder / "more.csv").write_text(text + "a large green moon\n")
    workspace.config["prompts"] = {"calibration": str(folder / "more.csv")}


def test_appended_prompts_invalidate_no_image(finished, tmp_path):
    copy = finished.copy(tmp_path / "copy")
    append_prompt(copy, tmp_path)
    copy.config["num_images"] = 4
    plan = copy.plan("calibrate")
    assert plan["encode_prompts"] == 1, "the prompt joins a shard that is there"
    assert plan["generate_calibration"] == 1


def test_a_shard_that_grows_hides_nothing_that_is_missing(finished, tmp_path):
    """Snakemake plans nothing behind an existing `ancient` input that it is about to make."""
    copy = finished.copy(tmp_path / "copy")
    append_prompt(copy, tmp_path)
    for path in (copy.results / "calibration").glob("0001.*"):
        path.unlink()
    plan = copy.plan("calibrate")
    assert plan["generate_calibration"] == 1
    copy.snakemake("calibrate")
    before = finished.digests()
    assert copy.digests() == {**before, **{
        name: digest for name, digest in copy.digests().items() if name.startswith("conditioning/")
    }}  # fmt: skip


def test_a_shard_that_grows_hides_no_other_change(finished, tmp_path):
    copy = finished.copy(tmp_path / "copy")
    append_prompt(copy, tmp_path)
    copy.config["num_steps"] = 8
    plan = copy.plan("calibrate")
    assert (plan["encode_prompts"], plan["generate_calibration"]) == (1, 3)


def test_another_prompt_in_a_row_redoes_its_image(finished, tmp_path):
    copy = finished.copy(tmp_path / "copy")
    text = Path(copy.config["prompts"]["calibration"]).read_text().replace("green", "pink")
    (tmp_path / "other.csv").write_text(text)
    copy.config["prompts"] = {"calibration": str(tmp_path / "other.csv")}
    plan = copy.plan("calibrate")
    assert (plan["encode_prompts"], plan["generate_calibration"]) == (1, 1)


def test_changed_encoding_code_redoes_what_is_drawn(finished, tmp_path):
    root = copy_of_the_repository(tmp_path / "repository")
    copy = finished.copy(tmp_path / "copy")
    copy.root = root
    change_code(root / "scripts" / "ditquant" / "models" / "text.py")
    plan = copy.plan("calibrate")
    assert (plan["encode_prompts"], plan["generate_calibration"]) == (1, 3)


def test_force_redoes_one_stage(finished, tmp_path):
    copy = finished.copy(tmp_path / "copy")
    before = copy.digests()
    target = "results/tiny/weights/adaround/blocks/mm00.safetensors"
    assert copy.plan(target, "--forcerun", "optimize_block") == {"optimize_block": 1}
    copy.snakemake(target, "--forcerun", "optimize_block")
    assert copy.digests() == before


def test_an_option_redoes_what_uses_it(finished, tmp_path):
    """Options of a recipe: test_copied.py."""
    copy = finished.copy(tmp_path / "copy")
    copy.config["inference"]["num_steps"] = 4
    copy.config["activations"]["bits"] = 6
    plan = copy.plan()
    assert {"generate_image", "analyze_activations"} <= set(plan)
    assert not {"generate_calibration", "optimize_block", "collect_activations"} & set(plan)


def copy_of_the_repository(folder: Path) -> Path:
    names = (".git", ".venv", "results", ".snakemake", "__pycache__")
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*names))
    return folder


def change_code(path: Path) -> None:
    path.write_text(path.read_text("utf-8") + "\nEXTRA = 1\n", "utf-8")


def test_changed_code_redoes_its_stage_and_nothing_above(finished, tmp_path):
    root = copy_of_the_repository(tmp_path / "repository")
    copy = finished.copy(tmp_path / "copy")
    copy.root = root
    assert copy.plan() == {}, "another checkout of the same code must redo nothing"
    change_code(root / "scripts" / "ditquant" / "weights" / "reconstruct.py")
    plan = copy.plan()
    assert {"optimize_block", "assemble_weights", "render_report"} <= set(plan)
    above = {"encode_prompts", "generate_calibration", "cache_block_io", "collect_activations"}
    assert not above & set(plan)


# Where a run is stopped: by the file whose appearance shows that the stage is at work. Runs that
# are killed while they calibrate, and learning jobs that are interrupted: test_faults.py.
@pytest.mark.parametrize(
    ("target", "log", "number"),
    [
        ("calibrate", "logs/generate_calibration/0001.log", signal.SIGINT),
        ("weights", "logs/optimize_block/adaround-mm01.log", signal.SIGKILL),
    ],
)
def test_a_stopped_run_goes_on_and_ends_the_same(finished, workspace, target, log, number):
    process = workspace.start(target)
    wait_for(lambda: (workspace.results / log).exists())
    signal_group(process, number)
    process.communicate(timeout=120)
    assert process.returncode != 0
    if number == signal.SIGKILL:
        assert "--unlock" in workspace.error(target)
        workspace.snakemake("--unlock")
    workspace.snakemake(target)
    reference = finished.digests()
    made = workspace.digests()
    assert len(made) > 4
    assert made == {name: reference[name] for name in made}


def test_two_runs_at_once_are_refused_with_advice(workspace):
    locks = workspace.folder / ".snakemake" / "locks"
    process = workspace.start("calibrate")
    try:
        wait_for(lambda: any(lock.stat().st_size for lock in locks.glob("*.output.lock")))
        os.killpg(process.pid, signal.SIGSTOP)  # it may be done before the other has begun
        message = workspace.error("calibrate")
        assert "cannot be locked" in message
        assert "--unlock" in message
    finally:
        os.killpg(process.pid, signal.SIGCONT)
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=120)
