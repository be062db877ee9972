"""A row of the table of bad input (`bad_input`), and how it is put to the workflow."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ditquant.errors import UserError

from .planned import ROOT, plan


@dataclass(frozen=True)
class BadInput:
    """One row.

    Attributes:
        name: of the row.
        says: a part of the message.
        changes: what a configuration file changes of the demo's; in texts, `{folder}` stands for
            the folder that holds `files`.
        text: the whole of the configuration file, in place of `changes`.
        typed: what stands behind `--config`.
        files: file name -> content.
        reaches_us: False where Snakemake itself refuses the file before it reads the Snakefile;
            `make run` says it in our words.
    """

    name: str
    says: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    text: bytes | None = None
    typed: tuple[str, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)
    reaches_us: bool = True


def _placed(value: Any, folder: Path) -> Any:
    if isinstance(value, str):
        return value.replace("{folder}", str(folder))
    if isinstance(value, Mapping):
        return {key: _placed(inner, folder) for key, inner in value.items()}
    return [_placed(inner, folder) for inner in value] if isinstance(value, list) else value


def write(row: BadInput, folder: Path) -> Path | None:
    """Writes a row's files; the path of its configuration file, if it has one."""
    for name, content in row.files.items():
        (folder / name).write_bytes(content)
    if row.text is None and not row.changes:
        return None
    path = folder / "mine.yaml"
    path.write_bytes(row.text or yaml.safe_dump(_placed(row.changes, folder)).encode())
    return path


def message(row: BadInput, folder: Path) -> str | None:
    """What the plan says of a row; None if it says nothing."""
    try:
        plan(write(row, folder), row.typed)
    except UserError as error:
        return str(error)
    return None


def dry_run(row: BadInput, folder: Path) -> subprocess.CompletedProcess[str]:
    """Plans a row with Snakemake, in a folder `work` below the one for its files.

    A row that does not `reaches_us` ends there with a message of Snakemake's own, or a traceback.
    """
    path = write(row, folder)
    words = ["--configfile", str(path)] if path else []
    typed = ["--config", *row.typed] if row.typed else []
    return subprocess.run(
        [
            sys.executable, "-m", "snakemake", "--dry-run", "--snakefile", str(ROOT / "Snakefile"),
            "--workflow-profile", str(ROOT / "profiles" / "default"),
            "--directory", str(folder / "work"), *words, *typed,
        ],
        capture_output=True, text=True,
    )  # fmt: skip
