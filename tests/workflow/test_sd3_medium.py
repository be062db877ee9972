"""`config/sd3-medium.yaml` and the same rules, on a small checkpoint in the real layout.

The single file, the offline hub cache and the 24 blocks are SD3-medium's; only the widths are
small. Every job loads through DiffusionKit's own loader functions.
"""

from __future__ import annotations

import json
import os

import pytest

from support.models import write_sd3
from workflow.conftest import ROOT, Workspace

SMALL = {
    "run": "small-sd3",
    "num_images": 1,
    "num_steps": 4,
    "recipe": "rtn",
    "text": {"shard_size": 2},
    "calibration": {"image_size": [64, 64]},
    "weights": {"num_images": 1, "stride": 2},
    "activations": {"num_images": 1, "stride": 2, "plots": {"snapshot_steps": [0, 2]}},
    "recipes": {"rtn": {"rounding": "rtn", "group_size": 64}},
    "inference": {"num_steps": 3},
    "evaluation": {"captions": 1, "variants": ["rtn-weights"]},
}


class SD3Workspace(Workspace):
    def command(self, *arguments: str) -> list[str]:
        command = super().command(*arguments)
        place = command.index("--configfile") + 1
        return [*command[:place], str(ROOT / "config" / "sd3-medium.yaml"), *command[place:]]


@pytest.fixture
def sd3(tmp_path, monkeypatch):
    hub = tmp_path / "hub"
    checkpoint = write_sd3(tmp_path / "model", hub)
    site = [ROOT / "tests" / "support" / "site", ROOT / "tests"]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, site)))
    monkeypatch.setenv("HF_HUB_CACHE", str(hub))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = {"name": "sd3-medium", "checkpoint": str(checkpoint), "dtype": "float32"}
    (tmp_path / "work").mkdir()
    return SD3Workspace(tmp_path / "work", {**SMALL, "model": model})


def test_the_published_plan():
    """The shipped configuration, on which only the checkpoint is missing."""
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--dry-run", "--quiet", "host", "--snakefile",
         str(ROOT / "Snakefile"), "--configfile", str(ROOT / "config" / "sd3-medium.yaml")],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    table = dict(line.split() for line in done.stdout.splitlines() if len(line.split()) == 2)
    assert table["generate_calibration"] == "10"
    assert table["cache_block_io"] == "10"
    assert table["optimize_block"] == "72"  # 24 blocks by rtn, by gptq and by adaround


@pytest.mark.slow
def test_the_same_rules_serve_sd3_medium(sd3):
    image = "results/small-sd3/images/rtn-a8/p00.png"
    sd3.snakemake("quantize", image)
    config = json.loads((sd3.results / "weights" / "rtn" / "model" / "config.json").read_text())
    assert config["quantization"]["bits"] == 4
    ranges = json.loads((sd3.results / "activations" / "quant_config.json").read_text())
    assert len(ranges["layers"]) == 285
    assert (sd3.folder / image).stat().st_size > 0


def test_a_gated_model_without_login_says_what_to_do(sd3):
    """Offline and without the file: the job's message, and no traceback."""
    sd3.config["model"]["checkpoint"] = None
    message = sd3.error("calibrate")
    assert "argmaxinc/mlx-stable-diffusion-3-medium" in message
    assert "model.checkpoint" in message
    assert "Traceback" not in message
    assert len(list((sd3.results / "conditioning").iterdir())) == 1
