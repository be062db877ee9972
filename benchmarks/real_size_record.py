"""What a run at the real size took and found, from the files that it left.

Read are the run's folder and, in `benchmarks/real_size/` below it, what `real_size.py` noted of the
run and `real_size_blocks.py` of the blocks. What is missing is left out, so that a run that was cut
short has its figures too.
"""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from in_process import ROOT

from ditquant import job_times

CONFIGURATIONS = [ROOT / "config" / name for name in ("sd3-medium.yaml", "real-size.yaml")]
# Below the run's folder.
NOTES = Path("benchmarks") / "real_size"
Row = dict[str, Any]


def rule_of(path: Path) -> str:
    """Rule of a job's file below logs/ or benchmarks/; of blocks with its recipe."""
    rule = path.parts[0] if len(path.parts) > 1 else path.stem
    return f"{rule} {path.stem.rpartition('-')[0]}" if rule == "optimize_block" else rule


def _number(text: str | None) -> float | None:
    """Snakemake writes "-" or "NA" for what it could not measure."""
    try:
        return float(text or "")
    except ValueError:
        return None


def job_rows(run: Path) -> Iterator[tuple[str, Row]]:
    """(rule, seconds by part and peaks in bytes) of every finished job."""
    for path in sorted((run / "benchmarks").rglob("*.tsv")):
        relative = path.relative_to(run / "benchmarks")
        with path.open(newline="", encoding="utf-8") as file:
            (measured,) = csv.DictReader(file, delimiter="\t")
        log = run / "logs" / relative.with_suffix(".log")
        times = job_times.read_times(log.read_text("utf-8")) if log.is_file() else {}
        resident = _number(measured.get("max_rss"))
        yield (
            rule_of(relative),
            {
                "seconds": float(measured["s"]),
                **{part: times.get(part) for part in job_times.PARTS},
                "device_bytes": times.get("peak_bytes"),
                "host_bytes": None if resident is None else resident * 2**20,
            },
        )


def _over(jobs: Sequence[Row], name: str, what: Callable[[list[float]], float]) -> float | None:
    """A statistic of one column, over the jobs that have it."""
    known = [job[name] for job in jobs if job[name] is not None]
    return what(known) if known else None


def rule_rows(run: Path) -> list[Row]:
    """One entry a rule: jobs, mean seconds by part, and the highest peaks; the longest first."""
    rules: dict[str, list[Row]] = {}
    for rule, job in job_rows(run):
        rules.setdefault(rule, []).append(job)
    rows = [
        {
            "rule": rule,
            "jobs": len(jobs),
            "seconds_together": sum(job["seconds"] for job in jobs),
            "longest": max(job["seconds"] for job in jobs),
            **{part: _over(jobs, part, statistics.fmean) for part in job_times.PARTS},
            "host_bytes": _over(jobs, "host_bytes", max),
            "device_bytes": _over(jobs, "device_bytes", max),
        }
        for rule, jobs in rules.items()
    ]
    return sorted(rows, key=lambda row: (-row["seconds_together"], row["rule"]))


def disk_rows(run: Path) -> list[Row]:
    """Files and bytes of every stage's folder; of weights by recipe and kind."""
    stages: dict[str, list[int]] = {}
    for path in sorted(path for path in run.rglob("*") if path.is_file()):
        *folders, name = path.relative_to(run).parts
        depth = 3 if folders[:1] == ["weights"] else 1
        exported = depth == 3 and len(folders) == 2
        stage = "/".join([*folders[:depth], *([name] if exported else [])]) or name
        stages.setdefault(stage, []).append(path.stat().st_size)
    return [{"stage": s, "files": len(sizes), "bytes": sum(sizes)} for s, sizes in stages.items()]


def _documents(folder: Path, pattern: str) -> list[Row]:
    return [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob(pattern))]


def gather(run: Path) -> Row:
    """The record of a run, for JSON."""
    blocks = _documents(run / NOTES, "blocks*.json")
    return {
        "run": next(iter(_documents(run / NOTES, "run.json")), {}),
        "report": (run / "report" / "index.html").is_file(),
        "exports": sorted(path.name for path in run.glob("weights/*/diffusionkit-*.safetensors")),
        "rules": rule_rows(run),
        "disk": disk_rows(run),
        "blocks": {
            "devices": sorted({document["device"] for document in blocks}),
            "tf32": any(document["tf32"] for document in blocks),
            "rows": [row for document in blocks for row in document["rows"]],
        },
        "learned": learned_rows(run),
    }


def learned_rows(run: Path) -> list[Row]:
    """What the run's own jobs made of the blocks of recipes that learn."""
    rows = []
    for path in sorted(run.glob("weights/*/blocks/*.json")):
        document = json.loads(path.read_text("utf-8"))
        if document["history"] or document["diverged"]:
            rtn, kept = document["hard_error"]["rtn"], document["kept_error"]
            rows.append(
                {
                    "recipe": path.parts[-3],
                    "block": document["block"],
                    "kept": document["kept"],
                    "diverged": document["diverged"] is not None,
                    "ratio": kept["held_out"] / rtn["held_out"],
                    "binary_share": document["binary_share"],
                }
            )
    return rows
