"""Kills, power cuts, damaged files and bad input, made on purpose: what the workflow makes of them.

    make faults
    benchmarks/faults.py [--seed 0] [--parts kills,power,...] [--record benchmarks/results/faults]

A small run with a random model is done once undisturbed. Then its jobs and whole runs are killed,
its files damaged, its file system's power is cut and its input spoiled, and what comes of it is
compared with the undisturbed run, byte by byte. Exit status 1 if one case ends badly.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "scripts")]

from ditquant.backend import describe_device  # noqa: E402
from faults import kills, parts  # noqa: E402
from faults.jobs import kept_jobs  # noqa: E402
from faults.record import Count, markdown, renewed  # noqa: E402
from faults.reference import reference_of  # noqa: E402
from faults.setting import everything, undisturbed  # noqa: E402

Part = Callable[[parts.Bench, int], list[Count]]


def kill_everything(bench: parts.Bench, seed: int) -> list[Count]:
    """Single jobs at chosen and random moments, whole runs on their way, and late orphans."""
    of_each = kills.one_of_each(bench.jobs)
    targets = everything(bench.reference.workspace.config)
    late = [job for job in of_each if job.rule in LATE_ORPHANS]
    return [
        parts.killed_jobs(bench, parts.all_kills(bench)),
        parts.killed_at_random(bench, 20, seed),
        parts.killed_runs(bench, of_each, targets, seed, at_random=4),
        parts.outrun_orphans(bench, late),
    ]


LATE_ORPHANS = frozenset(
    {"encode_prompts", "cache_block_io", "optimize_block", "tune_weights", "render_report"}
)  # fmt: skip


def damage_everything(bench: parts.Bench, seed: int) -> list[Count]:
    """Every kind of file in every way, and by every reader."""
    return [
        parts.damaged_files(bench, seed),
        parts.damaged_states(bench, seed),
        parts.damaged_benchmarks(bench, seed),
        parts.damaged_sources(bench, seed),
        parts.damaged_plans(bench, seed),
        parts.remade_files(bench),
        parts.damaged_in_runs(bench, seed, 6),
    ]


PARTS: dict[str, Part] = {
    "checks": lambda bench, _: [parts.steady(bench), parts.unknown_reads(bench)],
    "kills": kill_everything,
    "power": lambda bench, _: [parts.power_cuts(bench, resume_each=25)],
    "corruption": damage_everything,
    "input": lambda bench, _: [parts.bad_input(bench)],
}


def commit() -> str:
    """Short hash of what is checked out; "unknown" outside a repository."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", default=",".join(PARTS), help="some of them, with commas")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder")
    parser.add_argument(
        "--record", type=Path, help="renew the parts in .json and .md of this name, one by one"
    )
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ditquant-faults-") as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        finished = undisturbed(folder)
        print(f"undisturbed run: {time.monotonic() - started:.0f} s", flush=True)
        bench = parts.Bench(
            reference_of(finished), kept_jobs(finished), folder / "work", options.workers
        )
        counts, record = [], {}
        if options.record and options.record.with_suffix(".json").exists():
            record = json.loads(options.record.with_suffix(".json").read_text("utf-8"))
        for name in options.parts.split(","):
            begun = time.monotonic()
            made = PARTS[name](bench, options.seed)
            counts += made
            for count in made:
                print(count.line(), flush=True)
            seconds = round(time.monotonic() - begun)
            print(f"{name}: {seconds} s", flush=True)
            part = {
                "date": str(date.today()),
                "commit": commit(),
                "device": describe_device(),
                "cores": os.cpu_count(),
                "seconds": seconds,
                "jobs": len(bench.jobs),
                "counts": [count.document() for count in made],
            }
            record = renewed(record, name, part)
            if options.record:
                text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
                options.record.with_suffix(".json").write_text(text, "utf-8")
                options.record.with_suffix(".md").write_text(markdown(record), "utf-8")
    print()
    for name, figure in record["totals"].items():
        print(f"{name}: {figure}")
    return 1 if any(count.failures for count in counts) else 0


if __name__ == "__main__":
    sys.exit(main())
