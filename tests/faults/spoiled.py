"""The table of bad input (`support.bad_input`), row by row through Snakemake itself."""

from __future__ import annotations

import tempfile
from pathlib import Path

from support.bad_input import BAD_INPUT, BadInput, dry_run, message

from .corruption import TRACEBACK

ROWS = BAD_INPUT


def problems_of(row: BadInput) -> list[str]:
    """Plans a row; what is wrong with what is said, or with what is left."""
    with tempfile.TemporaryDirectory(prefix="ditquant-input-") as name:
        folder = Path(name)
        expected = row.says.replace("{folder}", name)
        if not row.reaches_us:  # Snakemake reads the file before us; `make run` before Snakemake
            said = message(row, folder)
            return [] if said and expected in said else [f"it says {said!r}"]
        done = dry_run(row, folder)
        text = done.stdout + done.stderr
        problems = []
        if TRACEBACK in text:
            problems.append(f"a traceback: {text[-700:]}")
        if done.returncode == 0:
            problems.append("exit status 0")
        if expected not in text:
            problems.append(f"it says {text[-700:]!r}")
        if (folder / "work" / "results").exists():
            problems.append("something was made")
        return problems
