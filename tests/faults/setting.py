"""The small run that faults are tried on: every rule of the workflow has a job in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from support.models import write_folder
from support.workspace import Workspace, local_configuration

# A recipe that has all that the default one lacks: statistics, blocks before, tuning.
CHAINED = {
    "rounding": "adaround", "balance": "smoothquant", "inputs": "quantized", "group_size": 32,
    "iterations": 12, "batch_size": 4, "tune_iterations": 12, "tune_batch_size": 4,
    "tune_learning_rate": 0.01, "tune_stride": 2,
}  # fmt: skip
# Ranges that are tried on held-out images.
CUT = {"bits": 6, "granularity": "static", "channel_group": None, "range": "measured"}


def with_everything(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with a recipe and ranges whose rules the small run does not have."""
    return {
        **config,
        "recipes": {**config["recipes"], "chained": CHAINED},
        "activations": {
            **config["activations"],
            "clips": {"images": 1, "stride": 3},
            "variants": {"cut": CUT},
        },
    }


def everything(config: dict[str, Any]) -> list[str]:
    """Targets that together run every rule but those of the demo model's training."""
    results = f"results/{config['run']}"
    return [
        "all",
        f"{results}/weights/adaround/diffusionkit-fp16.safetensors",
        f"{results}/weights/chained/model/model.safetensors",
        f"{results}/weights/chained/plots/history.png",
        f"{results}/weights/chained/activations/quant_config_cut.json",
    ]


def undisturbed(folder: Path) -> Workspace:
    """A finished run of everything in a new folder, with its own model; the scripts of its jobs
    are kept (`jobs.kept_jobs`)."""
    model = write_folder(folder / "model")
    config = with_everything(local_configuration(folder, model))
    return finish(Workspace(folder / "run", config))


def finish(workspace: Workspace) -> Workspace:
    """Runs all targets of `everything`, and keeps the scripts of the jobs.

    The report comes once more: it shows the seconds of all jobs, and some may have come after it.
    """
    workspace.folder.mkdir(exist_ok=True)
    workspace.snakemake(*everything(workspace.config), "--skip-script-cleanup")
    workspace.snakemake("report", "--forcerun", "render_report", "--skip-script-cleanup")
    return workspace


def fresh(workspace: Workspace, folder: Path) -> Workspace:
    """An empty folder with the same configuration."""
    folder.mkdir(parents=True)
    return Workspace(folder, yaml.safe_load(yaml.safe_dump(workspace.config)), workspace.root)
