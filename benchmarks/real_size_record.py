"""What a run at the real size took and found, from the files that it left.

Read are the run's folder and, in `benchmarks/real_size/` below it, what `real_size.py` noted of the
run and `real_size_blocks.py` of the blocks. What is missing is left out, so that a run that was cut
short has its figures too.
"""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from records import ROOT

from ditquant import job_times

CONFIGURATIONS = [ROOT / "config" / name for name in ("sd3-medium.yaml", "real-size.yaml")]
# Below the run's folder.
NOTES = Path("benchmarks") / "real_size"
Row = dict[str, Any]
Rows = dict[str, Row]


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
    """(rule, seconds by part and peaks in GB) of every finished job."""
    for path in sorted((run / "benchmarks").rglob("*.tsv")):
        relative = path.relative_to(run / "benchmarks")
        with path.open(newline="", encoding="utf-8") as file:
            (measured,) = csv.DictReader(file, delimiter="\t")
        log = run / "logs" / relative.with_suffix(".log")
        times = job_times.read_times(log.read_text("utf-8")) if log.is_file() else {}
        resident, peak = _number(measured.get("max_rss")), times.get("peak_bytes")
        yield (
            rule_of(relative),
            {
                "seconds": float(measured["s"]),
                **{part: times.get(part) for part in job_times.PARTS},
                "device_gb": None if peak is None else peak / 1e9,
                "host_gb": None if resident is None else resident * 2**20 / 1e9,
            },
        )


def _over(jobs: Sequence[Row], name: str, what: Callable[[list[float]], float]) -> float | None:
    """A statistic of one column, over the jobs that have it."""
    known = [job[name] for job in jobs if job[name] is not None]
    return what(known) if known else None


def rule_rows(run: Path) -> Rows:
    """A row a rule: jobs, mean seconds by part, and the highest peaks; the longest first."""
    rules: dict[str, list[Row]] = {}
    for rule, job in job_rows(run):
        rules.setdefault(rule, []).append(job)
    rows = {
        rule: {
            "jobs": len(jobs),
            "seconds": sum(job["seconds"] for job in jobs),
            "longest": max(job["seconds"] for job in jobs),
            **{part: _over(jobs, part, statistics.fmean) for part in job_times.PARTS},
            "host_gb": _over(jobs, "host_gb", max),
            "device_gb": _over(jobs, "device_gb", max),
        }
        for rule, jobs in rules.items()
    }
    return dict(sorted(rows.items(), key=lambda item: (-item[1]["seconds"], item[0])))


def disk_rows(run: Path) -> Rows:
    """Files and GB of every stage's folder; of weights by recipe and kind."""
    stages: dict[str, list[int]] = {}
    for path in sorted(path for path in run.rglob("*") if path.is_file()):
        *folders, name = path.relative_to(run).parts
        depth = 3 if folders[:1] == ["weights"] else 1
        exported = depth == 3 and len(folders) == 2
        stage = "/".join([*folders[:depth], *([name] if exported else [])]) or name
        stages.setdefault(stage, []).append(path.stat().st_size)
    stages["all"] = [size for sizes in stages.values() for size in sizes]
    return {stage: {"files": len(s), "gb": sum(s) / 1e9} for stage, s in stages.items()}


def learned_rows(run: Path) -> Rows:
    """A row a recipe that learns: what the run's own jobs made of its blocks."""
    found: dict[str, list[Row]] = {}
    for path in sorted(run.glob("weights/*/blocks/*.json")):
        document = json.loads(path.read_text("utf-8"))
        if document["history"] or document["diverged"]:
            found.setdefault(path.parts[-3], []).append(document)
    rows = {}
    for recipe, documents in found.items():
        ratios = [
            one["kept_error"]["held_out"] / one["hard_error"]["rtn"]["held_out"]
            for one in documents
        ]
        rows[recipe] = {
            "blocks": len(documents),
            "smallest": min(ratios),
            "largest": max(ratios),
            "kept_rtn": sum(one["kept"] == "rtn" and not one["diverged"] for one in documents),
            "diverged": sum(one["diverged"] is not None for one in documents),
            "binary": min(one["binary_share"] or 0.0 for one in documents),
        }
    return rows


def by_block(rows: Sequence[Mapping[str, Any]]) -> Rows:
    """A row a block: the error of rtn and the others' ratios to it, by recipe and dtype."""
    found: Rows = {}
    for row in rows:
        if "error" not in row:
            shown = row["kept_error"] if row["recipe"] == "rtn" else row["ratio"]
            found.setdefault(row["block"], {})[f"{row['recipe']}_{row['dtype']}"] = shown
    return dict(sorted(found.items()))


def by_recipe(rows: Sequence[Mapping[str, Any]]) -> Rows:
    """A row a recipe: blocks and ratios to rtn in each dtype, and how far the dtypes differ."""
    found: Rows = {}
    for recipe in dict.fromkeys(row["recipe"] for row in rows):
        own = [row for row in rows if row["recipe"] == recipe]
        good = {(r["block"], r["dtype"]): r for r in own if "error" not in r}
        summary: Row = {"failed": len(own) - len(good)}
        for dtype in ("float16", "float32"):
            ratios = [row["ratio"] for (_, of), row in good.items() if of == dtype]
            summary[f"{dtype}_blocks"] = len(ratios)
            if ratios:
                summary[f"{dtype}_median"] = statistics.median(ratios)
                summary[f"{dtype}_largest"] = max(ratios)
        differences = [
            row["kept_error"] / good[block, "float32"]["kept_error"] - 1
            for (block, dtype), row in good.items()
            if dtype == "float16" and (block, "float32") in good
        ]
        if differences:
            summary["largest_difference"] = max(differences, key=abs)
            summary["mean_difference"] = statistics.fmean(differences)
        found[recipe] = summary
    return found


def gather(run: Path) -> dict[str, Rows]:
    """Section -> rows of the record; a section without rows is left out.

    Raises:
        FileNotFoundError: the run did not end with its report.
    """
    if not (run / "report" / "index.html").is_file():
        raise FileNotFoundError(f"{run} has no report: the run did not end.")
    note = run / NOTES / "run.json"
    rules, disk = rule_rows(run), disk_rows(run)
    whole: Row = {
        "device_gb": max(row["device_gb"] or 0.0 for row in rules.values()),
        "disk_gb": disk["all"]["gb"],
        "exports": len(list(run.glob("weights/*/diffusionkit-*.safetensors"))),
    }
    if note.is_file():
        whole |= json.loads(note.read_text("utf-8"))
    rows = [
        row
        for path in sorted((run / NOTES).glob("blocks*.json"))
        for row in json.loads(path.read_text("utf-8"))["rows"]
    ]
    sections = {
        "run": {"all": whole},
        "rules": rules,
        "disk": disk,
        "learned": learned_rows(run),
        "recipes": by_recipe(rows),
        "blocks": by_block(rows),
    }
    return {name: found for name, found in sections.items() if found}
