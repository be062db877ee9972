"""The whole workflow at the size of Stable Diffusion 3 medium, from prompts to the report.

    make real-size                    (EXTRA=cuda13 on Linux with an NVIDIA GPU)

model     writes a random model in the published layout and size to results/real-size-model
          (`real_size_model.py`), once
run       runs the workflow on it: `config/sd3-medium.yaml` with `config/real-size.yaml` over it,
          to the report and both exports
blocks    compares the blocks' errors by four recipes in float16 and float32
          (`real_size_blocks.py`)
record    writes what all that took and found to benchmarks/results/real_size.json
          (`real_size_record.py`), and `make tables` renders it

Needs an accelerator and 25 GB of disk below results/. Stopped at any moment, the same command goes
on; a finished run is not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from real_size_record import CONFIGURATIONS, NOTES, gather
from records import RESULTS, ROOT, machine, read_configuration, save_section

from ditquant.backend import is_accelerated

STEPS = ("model", "run", "blocks", "record")
TARGETS = ("report", "export")


def environment(hub: Path) -> dict[str, str]:
    """That of jobs which find the text encoders in a cache and ask no hub."""
    return {**os.environ, "HF_HUB_CACHE": str(hub.resolve()), "HF_HUB_OFFLINE": "1"}


def note_run(path: Path, seconds: float) -> None:
    """Adds a call's seconds to what is known of the run: it may have been stopped on the way."""
    before: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    note = {
        "calls": before.get("calls", 0) + 1,
        "seconds": round(before.get("seconds", 0.0) + seconds, 1),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(note) + "\n", "utf-8")


def script(name: str, *arguments: str) -> int:
    """Runs a script of this folder; its exit status."""
    return subprocess.run(
        [sys.executable, str(Path(__file__).with_name(name)), *arguments]
    ).returncode


def run_workflow(files: list[str], run: Path, hub: Path, more: str) -> int:
    """Snakemake to the report and the exports; its exit status."""
    command = [
        sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"),
        "--configfile", *files, *shlex.split(more), "--", *TARGETS,
    ]  # fmt: skip
    began = time.monotonic()
    try:
        return subprocess.run(command, env=environment(hub), check=False).returncode
    finally:
        note_run(run / NOTES / "run.json", time.monotonic() - began)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("steps", nargs="*", metavar="step", help=f"of {', '.join(STEPS)}; all")
    parser.add_argument("--configfile", type=Path, nargs="+", default=CONFIGURATIONS)
    parser.add_argument("--json", type=Path, default=RESULTS / "real_size.json")
    parser.add_argument("--snakemake", default="", metavar="WORDS", help="more for Snakemake")
    parser.add_argument("--cpu", action="store_true", help="also without an accelerator: days")
    options = parser.parse_args(arguments)
    steps = options.steps or list(STEPS)
    unknown = [step for step in steps if step not in STEPS]
    if unknown:
        parser.error(f"no such step: {', '.join(unknown)}; there are {', '.join(STEPS)}.")
    if not (is_accelerated() or options.cpu):
        parser.error(
            "MLX computes on the CPU here, where this takes days. On Linux with an NVIDIA GPU: "
            "make real-size EXTRA=cuda13"
        )

    config = read_configuration(options.configfile)
    checkpoint, run = Path(config["model"]["checkpoint"]), Path("results") / config["run"]
    files = [str(file) for file in options.configfile]
    blocks = ["--configfile", *files, "--json", str(run / NOTES / "blocks.json")]
    # Each in a process of its own, so that none holds memory of the device beside another.
    calls = {
        "model": lambda: script("real_size_model.py", str(checkpoint.parent)),
        "run": lambda: run_workflow(files, run, checkpoint.parent / "hub", options.snakemake),
        "blocks": lambda: script("real_size_blocks.py", *blocks),
    }
    for name in steps:
        status = calls[name]() if name in calls else 0
        if status:
            return status
    if "record" in steps:
        for name, rows in gather(run).items():
            save_section(options.json, name, rows, command="make real-size", machine=machine())
        print(f"The record: {options.json}; make tables renders it.", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
