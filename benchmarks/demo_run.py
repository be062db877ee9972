"""What a run of the demo shows and what it takes, from the files that the run left.

    make demo
    .venv/bin/python benchmarks/demo_run.py --wall-seconds 369

Writes the sections `run`, `blocks` (learned rounding against rounding to nearest), `variants` and
`stages` of benchmarks/results/demo_run.json. The wall time of `make demo` is not in the run's
files: give what `time` printed, without the set-up.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from evaluation import variant_rows
from records import RESULTS, ROOT, machine, save_section

from ditquant.artifacts import read_json
from ditquant.report.report_data import stage_times

RECIPE = "adaround"
# What the project promises of these: their errors over those of another variant.
BASELINES = {"adaround-a8": "adaround-weights", "adaround-multitier": "adaround-weights"}


def blocks(run: Path, recipe: str) -> dict[str, dict[str, Any]]:
    """A row a block: errors on held-out images in units of the block's update, and their ratio."""
    rows = {}
    for path in sorted((run / "weights" / recipe / "blocks").glob("*.json")):
        document = read_json(path, "ditquant.block_result")
        rtn = document["hard_error"]["rtn"]["held_out"]
        kept = document["kept_error"]["held_out"]
        rows[document["block"]] = {
            "rtn": rtn,
            "result": kept,
            "ratio": kept / rtn,
            "binary": document["binary_share"],
            "kept": document["kept"],
        }
    return rows


def variants(run: Path) -> dict[str, dict[str, Any]]:
    """A row a variant; those of `BASELINES` against what they are built on."""
    rows = variant_rows(run, None)
    for name, base in BASELINES.items():
        if name in rows and base in rows:
            rows[name] = variant_rows(run, base)[name]
    return rows


def stages(run: Path) -> dict[str, dict[str, Any]]:
    """Jobs and seconds of every stage; jobs of several stages run beside each other."""
    return {
        stage.rule: {name: getattr(stage, name) for name in ("jobs", "seconds", "longest")}
        for stage in stage_times(run / "benchmarks")
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, default=ROOT / "results" / "demo")
    parser.add_argument("--wall-seconds", type=float, required=True)
    parser.add_argument("--json", type=Path, default=RESULTS / "demo_run.json")
    options = parser.parse_args(arguments)
    sections = {
        "run": {"demo": {"seconds": options.wall_seconds}},
        "blocks": blocks(options.run, RECIPE),
        "variants": variants(options.run),
        "stages": stages(options.run),
    }
    command = f"make demo; benchmarks/demo_run.py --wall-seconds {options.wall_seconds:g}"
    for name, rows in sections.items():
        save_section(options.json, name, rows, command=command, machine=machine())


if __name__ == "__main__":
    main()
