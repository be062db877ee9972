"""Records of measurements: small JSON files below benchmarks/results, a row a line.

    {"quality": {                                       a section: what one command measured
      "command": "snakemake evaluate --configfile ...", "date": "2026-11-22", "machine": "...",
      "rows": {
        "rtn": {"error": 0.0334, "psnr": 33.8},
        "best": {"error": 0.0073, "psnr": 41.2, "ratio": 0.22}
    }}}

Numbers keep one or two digits more than documents show. `value` finds the number of a path
(record/section/row/column); `render.py` makes tables of sections and compares documents with them.
Importing this module puts `scripts/` on the path, so that benchmarks find the library.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
if str(ROOT / "scripts") not in sys.path:
    sys.path.insert(0, str(ROOT / "scripts"))

DIGITS = 6  # significant ones that are kept
Row = Mapping[str, Any]


def rounded(value: Any) -> Any:
    """Floats with `DIGITS` significant digits; everything else, and what holds it, as it is."""
    if isinstance(value, float):
        short = float(f"{value:.{DIGITS}g}")
        return int(short) if short.is_integer() and abs(short) >= 10**DIGITS else short
    if isinstance(value, Mapping):
        return {key: rounded(inner) for key, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, list) else value


def as_text(record: Mapping[str, Row]) -> str:
    """The text of a record, a line for each row and each other entry of a section."""
    sections = []
    for name, section in record.items():
        lines = [
            f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}"
            for key, value in section.items()
            if key != "rows"
        ]
        rows = [
            f"    {json.dumps(row)}: {json.dumps(values, ensure_ascii=False)}"
            for row, values in section["rows"].items()
        ]
        lines.append('  "rows": {\n' + ",\n".join(rows) + "\n  }")
        sections.append(f" {json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(sections) + "\n}\n"


def save_section(path: Path, name: str, rows: Mapping[str, Row], **about: Any) -> None:
    """Writes a section into the record of a path, in the place of one of the same name.

    Args:
        about: `command` and what else tells how the rows came about; date and commit are added.
    """
    record = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    about |= {"commit": commit(), "date": str(date.today())}
    record[name] = {**{key: value for key, value in about.items() if value}, "rows": rounded(rows)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(as_text(record), "utf-8")


def section(path: str, results: Path = RESULTS) -> Row:
    """The section of a path "record/section".

    Raises:
        KeyError: there is none; the message names what is there.
    """
    name, _, wanted = path.partition("/")
    file = results / f"{name}.json"
    if not file.is_file():
        raise KeyError(f"{path}: there is no record {file.name}")
    record = json.loads(file.read_text("utf-8"))
    if wanted not in record:
        raise KeyError(f"{path}: {file.name} has the sections {', '.join(record)}")
    return record[wanted]


def values(path: str, results: Path = RESULTS) -> list[Any]:
    """What stands at "record/section/row/column", where the row may be a pattern ("mm*").

    Raises:
        KeyError: nothing stands there.
    """
    parts = path.split("/")
    if len(parts) != 4:
        raise KeyError(f"{path} is not of the form record/section/row/column")
    rows = section("/".join(parts[:2]), results)["rows"]
    found = [
        row[parts[3]]
        for name, row in rows.items()
        if fnmatchcase(name, parts[2]) and row.get(parts[3]) is not None
    ]
    if not found:
        raise KeyError(f"{path}: no such row or column; rows are {', '.join(rows)}")
    return found


def describe(section: Row) -> str:
    """How a section's rows came about, as a line below its table."""
    told = [f"`{section['command']}`"] if "command" in section else []
    told += [str(section[key]) for key in ("machine", "note") if key in section]
    commit = f", commit {section['commit']}" if "commit" in section else ""
    return f"{'; '.join(told)} ({section['date']}{commit})."


def machine() -> str:
    """What computes: the accelerator's name, or the cores."""
    from ditquant.backend import describe_device, is_accelerated, mx

    name = mx.device_info().get("device_name") if is_accelerated() else f"{os.cpu_count()} cores"
    return f"{name}, {describe_device()}"


def commit() -> str | None:
    """Short hash of what is checked out; None outside of a repository."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def read_configuration(files: Sequence[Path]) -> dict[str, Any]:
    """config/config.yaml with others laid over it, and the schema's defaults."""
    import yaml
    from snakemake.utils import update_config

    from ditquant.planning.configuration import complete

    config: dict[str, Any] = {}
    for file in (ROOT / "config" / "config.yaml", *files):
        update_config(config, yaml.safe_load(file.read_text("utf-8")))
    complete(config, yaml.safe_load((ROOT / "config" / "schema.yaml").read_text("utf-8")))
    return config
