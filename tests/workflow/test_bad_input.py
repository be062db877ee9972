"""What a user can get wrong gives one clear message, a non-zero exit, and loses nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from ditquant.models.files import read_header
from support.bad_input import BAD_INPUT, dry_run
from workflow.conftest import ROOT


def plain(message: str) -> str:
    assert "Traceback (most recent call last)" not in message, message[-3000:]
    return message


# The others of the table are told in process: tests/unit/test_bad_input.py.
SAMPLE = [
    next(row for row in BAD_INPUT if row.name == name)
    for name in (
        "prompt file: an unquoted comma",
        "configuration file: a key twice",
        "--config 'prompt=null'",
        "a key that is unknown",
    )
]


@pytest.mark.parametrize("row", SAMPLE, ids=lambda row: row.name)
def test_bad_input_ends_the_plan(tmp_path, row):
    done = dry_run(row, tmp_path)
    assert done.returncode != 0
    assert row.says in plain(done.stdout + done.stderr)
    assert not (tmp_path / "work" / "results").exists()


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("weights/svdquant/blocks/mm00.json", "Unknown recipe 'svdquant'"),
        ("weights/rtn/blocks/mm77.json", "Unknown block 'mm77'"),
        ("images/svdquant-a8/p00.png", "svdquant-a8: unknown recipe 'svdquant'"),
        ("images/full/p77.png", "Unknown prompt 'p77'"),
        ("calibration/0099.safetensors", "has 3 calibration images"),
    ],
)
def test_unknown_names_in_a_target(workspace, target, expected):
    assert expected in plain(workspace.error("--dry-run", f"results/tiny/{target}"))


def test_a_recipe_that_does_not_fit_the_model(workspace):
    """Told while planning, where something is made of it."""
    workspace.config["recipes"]["own"] = {"rounding": "rtn", "group_size": 128}
    message = plain(workspace.error("results/tiny/weights/own/blocks/mm00.json", "--dry-run"))
    assert "recipes.own.group_size: mm00.img.attn.q_proj of tiny has 64 inputs" in message
    assert workspace.plan("results/tiny/weights/rtn/blocks/mm00.json")["optimize_block"] == 1


def test_a_picture_that_the_model_cannot_draw(workspace):
    workspace.config["calibration"]["image_size"] = [64, 128]
    message = plain(workspace.error("--dry-run"))
    assert "calibration.image_size is 64 x 128 pixels, which tiny cannot draw" in message
    assert "multiples of 16 from 16 to 64" in message


def test_a_truncated_text_encoder_ends_the_plan(workspace, model_folder):
    broken = shutil.copytree(model_folder, workspace.folder / "model")
    encoder = broken / "clip_l" / "model.fp16.safetensors"
    os.truncate(encoder, encoder.stat().st_size - 100)
    workspace.config["model"] = {"name": "local", "checkpoint": str(broken)}
    message = plain(workspace.error("calibrate", "--dry-run"))
    assert "model.fp16.safetensors is damaged: truncated" in message


def test_a_damaged_weight_stops_one_job_and_keeps_the_rest(workspace, model_folder):
    """A checkpoint whose header is sound: only the job that loads its weights can tell."""
    broken = shutil.copytree(model_folder, workspace.folder / "model")
    checkpoint = broken / "tiny.safetensors"
    name = "model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight"
    with checkpoint.open("r+b") as file:
        file.seek(read_header(checkpoint)[name].begin)
        file.write(b"\x00\x7e")  # NaN in float16
    workspace.config["model"] = {"name": "local", "checkpoint": str(broken)}
    message = plain(workspace.error("calibrate"))
    assert f"tiny.safetensors: {name} holds values that are infinite or not a number" in message
    assert len(list((workspace.results / "conditioning").iterdir())) == 1
    shutil.copy2(model_folder / "tiny.safetensors", checkpoint)
    assert "encode_prompts" not in workspace.plan("calibrate")
    workspace.snakemake("calibrate")


def test_a_model_folder_that_is_none(workspace):
    workspace.config["model"] = {"name": "local", "checkpoint": str(workspace.folder)}
    assert "is no model folder" in plain(workspace.error("--dry-run"))


def test_prompts_of_any_kind_are_drawn(workspace):
    workspace.config["inference"] = {
        "prompts": ['a "red" star', "two\nlines", "赤い星 🟥 звезда", "x " * 1000],
        "num_steps": 2,
    }
    targets = [f"results/tiny/images/full/p0{index}.png" for index in range(4)]
    workspace.snakemake(*targets)
    assert all((workspace.folder / target).stat().st_size > 0 for target in targets)


def test_a_full_disk_keeps_what_was_done_and_goes_on(workspace):
    """A limit on file sizes stands in for the disk: small files fit, trajectories do not."""
    command = workspace.command("calibrate")
    limited = ["bash", "-c", 'trap "" XFSZ; ulimit -f 20; exec "$@"', "bash", *command]
    done = subprocess.run(limited, capture_output=True, text=True)
    assert done.returncode != 0
    message = done.stdout + done.stderr
    assert "The disk is full" in message
    assert not list(workspace.results.rglob("*.partial*"))
    workspace.snakemake("calibrate")
    assert (workspace.results / "calibration" / "0002.png").exists()


def test_a_configuration_file_that_does_not_exist():
    done = subprocess.run(
        ["make", "run", "CONFIGFILE=config/nowhere.yaml"], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHON": sys.executable},
    )  # fmt: skip
    assert done.returncode != 0
    assert "There is no configuration file config/nowhere.yaml" in plain(done.stderr)
    assert "config/sd3-medium.yaml" in done.stderr
