"""A folder in which Snakemake really runs, with a small configuration."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]

TINY = {
    "run": "tiny",
    "num_images": 3,
    "num_steps": 6,
    "weights": {"num_images": 2, "stride": 2},
    "activations": {"num_images": 2, "stride": 2, "plots": {"snapshot_steps": [0, 4]}},
    "calibration": {"cfg_weight": 2.0},
    "recipes": {"adaround": {"rounding": "adaround", "iterations": 20, "batch_size": 4}},
    "inference": {"prompts": ["a small red star", 'a "blue" ring'], "num_steps": 3},
    "evaluation": {
        "captions": 2,
        "batch_size": 2,
        "variants": ["rtn-weights", "adaround-weights", "adaround-a8", "adaround-multitier"],
    },
}


COLORS = ("red", "green", "blue", "white", "black", "yellow")


def local_configuration(folder: Path, model: Path) -> dict:
    """`TINY` on a model folder; its calibration prompts, in `folder`, fill a part of one shard."""
    prompts = folder / "calibration.csv"
    prompts.write_text("prompt\n" + "".join(f"a {color} square\n" for color in COLORS))
    return {
        **TINY,
        "model": {"name": "local", "checkpoint": str(model)},
        "prompts": {"calibration": str(prompts)},
    }


def fresh_signals() -> None:
    """A shell may start tests in the background with Ctrl-C ignored; the child must hear it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass
class Workspace:
    """A folder in which Snakemake works, with a copy of the workflow or with the repository's own.

    Attributes:
        folder: the working directory; results go below it.
        config: what is laid over config/config.yaml.
        root: folder of the Snakefile.
    """

    folder: Path
    config: dict
    root: Path = ROOT

    @property
    def results(self) -> Path:
        return self.folder / "results" / self.config["run"]

    def command(self, *arguments: str) -> list[str]:
        """Two model jobs at a time, of one thread each: faster on a CPU, with the same results."""
        (self.folder / "config.yaml").write_text(yaml.safe_dump(self.config))
        return [
            sys.executable, "-m", "snakemake", "--cores", "2",
            "--snakefile", str(self.root / "Snakefile"),
            "--workflow-profile", str(self.root / "profiles" / "default"),
            "--resources", "gpu=2", "--configfile", str(self.folder / "config.yaml"),
            "--directory", str(self.folder), *arguments,
        ]  # fmt: skip

    def snakemake(self, *arguments: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(*arguments), capture_output=True, text=True, preexec_fn=fresh_signals
        )
        if ok:
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        return done

    def error(self, *arguments: str) -> str:
        """What a run that must fail prints."""
        done = self.snakemake(*arguments, ok=False)
        assert done.returncode != 0, "the run was expected to fail"
        return done.stdout + done.stderr

    def plan(self, *arguments: str) -> Counter[str]:
        """Rule -> number of jobs that a dry run announces."""
        done = self.snakemake(*arguments, "--dry-run", "--quiet", "host")
        table = re.findall(r"^(\w+) +(\d+)$", done.stdout + done.stderr, flags=re.MULTILINE)
        return Counter({rule: int(count) for rule, count in table if rule != "total"})

    def activation_jobs(self, owners: list[str], *arguments: str) -> list[list[int]]:
        """Of jobs that a dry run announces, those about each owner's activations.

        Args:
            owners: "" for the full-precision model, "weights/{recipe}/" for a recipe.

        Returns:
            Of each how many measure images, merge statistics, choose the scales of a8, the tiers of
            multitier, and the scales of other schemes.
        """
        told = self.snakemake(*arguments, "--dry-run").stdout
        messages = (
            r"Measuring activations of image \d+ {place}",
            r"Merging statistics {place}",
            r"Choosing activation scales {place}/quant_config\.json",
            r"Choosing activation scales {place}/quant_config_multitier\.json",
            r"Choosing activation scales {place}/quant_config_(?!multitier)",
        )
        places = [rf"\({owner}activations" for owner in owners]
        return [
            [len(re.findall(message.format(place=place), told)) for message in messages]
            for place in places
        ]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """A run in a process group of its own, as a terminal would start it."""
        return subprocess.Popen(
            self.command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True, preexec_fn=fresh_signals,
        )  # fmt: skip

    def copy(self, folder: Path) -> Workspace:
        """The same state, in another folder; times of files are kept."""
        shutil.copytree(self.folder, folder, copy_function=shutil.copy2)
        return Workspace(folder, yaml.safe_load(yaml.safe_dump(self.config)), self.root)

    def digests(self) -> dict[str, str]:
        """Digest of every file that does not hold times or messages."""
        return {
            str(path.relative_to(self.results)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.results.rglob("*"))
            if path.is_file() and not is_timed(path.relative_to(self.results))
        }


def is_timed(path: Path) -> bool:
    """True for what may differ between two runs: logs, records, and what reports seconds."""
    timed = ("summary.csv", "index.html")
    return (
        path.parts[0] in ("logs", "benchmarks", ".records")
        or path.name in timed
        or "timing" in path.name
    )


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Waits until `condition()` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def signal_group(process: subprocess.Popen[str], number: int) -> None:
    """What a terminal's Ctrl-C does: the signal reaches Snakemake and its jobs."""
    os.killpg(process.pid, number)
