"""Folders whose names mean something to a shell, and those that Snakemake cannot read."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from support.models import write_folder
from support.workspace import ROOT, local_configuration

WORKFLOW = ("Snakefile", "rules", "scripts", "config", "profiles", "envs", "resources")
ODD = "my 'own' \"é\" $HOME & (赤)"


def copy_workflow(folder: Path) -> Path:
    for name in WORKFLOW:
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    return folder


def test_interpreter_workflow_model_prompts_and_results_in_an_odd_folder(tmp_path, workspace):
    """Without quotes around the interpreter's path every job ends with exit status 127."""
    odd = tmp_path / ODD
    for name in ("workflow", "work"):
        (odd / name).mkdir(parents=True)
    (odd / "environment").symlink_to(sys.prefix)
    config = local_configuration(odd, write_folder(odd / "model")) | {"num_images": 1}
    config |= {"num_steps": 2, "weights": {"stride": 1}, "activations": {"stride": 1}}
    run = replace(
        workspace, folder=odd / "work", config=config, root=copy_workflow(odd / "workflow")
    )
    command = run.command("results/tiny/calibration/0000.png")
    command[0] = str(odd / "environment" / Path(sys.executable).relative_to(sys.prefix))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert (run.results / "calibration" / "0000.png").stat().st_size > 0


def test_braces_in_the_path_of_the_workflow_are_told(tmp_path, workspace):
    folder = tmp_path / "a {b}"
    folder.mkdir()
    run = replace(workspace, root=copy_workflow(folder))
    message = run.error("--dry-run")
    assert f"Snakemake cannot run a workflow from {folder}: braces and brackets" in message
    assert "Traceback" not in message
