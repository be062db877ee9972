"""The workflow's jobs one by one: each its own script, in a process of its own, without Snakemake.

A run with `--skip-script-cleanup` leaves the scripts of its jobs as Snakemake really ran them: with
the job's inputs, outputs and parameters pickled in the first lines.
"""

from __future__ import annotations

import ast
import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.workspace import Workspace

from .moments import environment

SECONDS = 600


@dataclass(frozen=True)
class Job:
    """A job of a finished run.

    Attributes:
        path: its script, below the working directory.
        script: name of the script in the repository, without its suffix.
        rule: the rule's name.
        inputs, outputs: relative paths; each output with its name in the rule.
    """

    path: str
    script: str
    rule: str
    inputs: tuple[str, ...]
    outputs: dict[str, str]

    def __str__(self) -> str:
        return f"{self.rule} of {next(iter(self.outputs))}"


def _pickled(path: Path) -> Any:
    """The `snakemake` object in a kept script."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pickle.loads":
            return pickle.loads(ast.literal_eval(node.args[0]))
    raise AssertionError(f"{path} has no preamble")


def _named(files: Any) -> dict[str, str]:
    """Path -> its name in the rule; files of a list share the list's name."""
    names = {}
    for name, value in files.items():
        for path in [value] if isinstance(value, str) else value:
            names[str(path)] = name
    return {str(path): names.get(str(path), "") for path in files}


def kept_jobs(workspace: Workspace) -> list[Job]:
    """Every job of a finished run whose scripts were kept, in the order of their outputs' names;
    of one that ran twice, as it ran last."""
    jobs = {}
    scripts = (workspace.folder / ".snakemake" / "scripts").glob("*.py")
    for path in sorted(scripts, key=lambda path: path.stat().st_mtime_ns):
        job = _pickled(path)
        outputs = _named(job.output)
        jobs[tuple(outputs)] = Job(
            path=str(path.relative_to(workspace.folder)),
            script=path.name.split(".")[1],
            rule=job.rule,
            inputs=tuple(dict.fromkeys(map(str, job.input))),
            outputs=outputs,
        )
    return [jobs[key] for key in sorted(jobs)]


def command(job: Job) -> list[str]:
    return [sys.executable, job.path]


def reads(job: Job, workspace: Workspace, below: Sequence[Path], folder: Path) -> set[str]:
    """Files below some folders that a job opens for reading."""
    folder.mkdir(parents=True)
    run(job, workspace, environment("", reads=str(folder)))
    paths = {line for notes in folder.iterdir() for line in notes.read_text().splitlines()[1:]}
    return {path for path in paths if any(Path(path).is_relative_to(one) for one in below)
            and Path(path).is_file()}  # fmt: skip


def run(
    job: Job, workspace: Workspace, environ: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a job's script in the workspace; its outputs are written over."""
    return subprocess.run(
        command(job), cwd=workspace.folder, env=environ or environment("^$"),
        capture_output=True, text=True, errors="replace", timeout=SECONDS,
    )  # fmt: skip
