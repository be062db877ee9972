"""The scripts of inference and evaluation, on a small random model, from files to files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import compare_images
import draw_reference
import evaluate_variant
import generate_image
import summarize_differences
import summarize_evaluation
from ditquant.artifacts import load_metadata, load_tensors, read_json
from ditquant.backend import to_numpy
from ditquant.evaluation.pictures import LATENTS
from ditquant.evaluation.table import read_summary
from ditquant.metrics import psnr, relative_error
from ditquant.models.spec import Model
from ditquant.network.calibration import Prompt
from ditquant.plots.evaluation_charts import CHARTS
from support.models import write_conditioning, write_folder

PROMPT = '  "ein\nStern" 星空 звезда ' + "x" * 2000


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("model"))
    return Model("local", str(folder), "float32")


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    return str(write_conditioning(tmp_path_factory.mktemp("conditioning") / "own-000.safetensors"))


def draw(folder, model, shard, seed, variant="full"):
    picture, latents = (str(folder / f"{seed}.{kind}") for kind in ("png", "safetensors"))
    generate_image.main(
        conditioning=shard, picture=picture, latents=latents, variant=variant, model=model,
        prompt=Prompt(PROMPT, "", row=1), num_steps=4, cfg_weight=3.0, image_size=[64, 48],
        seed=seed,
    )  # fmt: skip
    return picture, latents


def compare(full, other, shown, numbers, variant, prompt):
    compare_images.main(
        full_picture=full[0], full_latents=full[1], picture=other[0], latents=other[1],
        comparison=str(shown), numbers=numbers, variant=variant, prompt=prompt,
    )  # fmt: skip


def test_an_image_is_drawn_again_byte_by_byte(tmp_path, model, shard):
    first = draw(tmp_path / "a", model, shard, 3)
    second = draw(tmp_path / "b", model, shard, 3)
    for one, other in zip(first, second, strict=True):
        with open(one, "rb") as left, open(other, "rb") as right:
            assert left.read() == right.read()
    with Image.open(first[0]) as picture:
        assert picture.size == (48, 64)
    assert load_tensors(first[1], LATENTS)["latents"].shape == (1, 8, 6, 16)
    assert load_metadata(first[1], LATENTS)["prompt"] == PROMPT


def test_comparison_measures_and_shows_two_images(tmp_path, model, shard):
    full, other = draw(tmp_path, model, shard, 3), draw(tmp_path, model, shard, 4)
    numbers, shown = str(tmp_path / "p00.json"), tmp_path / "p00.png"
    compare(full, other, shown, numbers, "rtn-a8", "p00")
    found = read_json(numbers, "ditquant.image_difference")
    pixels = [np.asarray(Image.open(picture)) for picture, _ in (other, full)]
    latents = [to_numpy(load_tensors(file, LATENTS)["latents"]) for _, file in (other, full)]
    assert found["psnr"] == pytest.approx(psnr(*pixels))
    assert found["latent_relative_error"] == pytest.approx(relative_error(*latents))
    assert found["prompt"] == PROMPT
    assert found["seed"] == 4
    with Image.open(shown) as picture:
        assert picture.width > 3 * 48 * 8

    compare(full, full, tmp_path / "same.png", numbers + "2", "full", "p01")
    same = read_json(numbers + "2", "ditquant.image_difference")
    assert same["psnr"] is None
    assert same["latent_relative_error"] == same["max_absolute_difference"] == 0

    output = str(tmp_path / "diff_stats.json")
    summarize_differences.main(numbers=[numbers, numbers + "2"], stats=output, variant="rtn-a8")
    stats = read_json(output, "ditquant.diff_stats")
    assert [prompt["prompt_id"] for prompt in stats["prompts"]] == ["p00", "p01"]
    assert stats["summary"]["psnr"] == {"median": None, "min": found["psnr"], "max": None}
    error = stats["summary"]["latent_relative_error"]
    assert error["median"] == pytest.approx(found["latent_relative_error"] / 2)


def evaluate(folder, model, shard, variants):
    plan = {
        "prompts": [{"text": f"caption {row}", "negative": "", "row": row} for row in range(3)],
        "seed": 1,
        "num_steps": 5,
        "cfg_weight": 3.0,
        "image_size": [64, 64],
        "batch_size": 2,
    }
    reference, timing = str(folder / "reference.safetensors"), str(folder / "reference.json")
    blocks = str(folder / "reference_blocks.safetensors")
    what = {
        "conditioning": [shard], "shards": [Path(shard).name] * 3, "plan": plan,
        "reference": reference, "model": model,
    }  # fmt: skip
    draw_reference.main(**what, blocks=blocks, timing=timing)
    for variant in variants:
        evaluate_variant.main(
            **what, reference_blocks=blocks, reference_timing=timing, variant=variant,
            evaluation=str(folder / f"{variant}.json"),
            timing=str(folder / f"{variant}.timing.json"),
        )  # fmt: skip


def test_evaluation_from_reference_to_table(tmp_path, model, shard):
    variants = ["full", "noise-floor"]
    evaluate(tmp_path, model, shard, variants)
    plots = [tmp_path / "plots" / f"{name}.svg" for name in CHARTS]
    summary = tmp_path / "summary.csv"
    summarize_evaluation.main(
        evaluations=[str(tmp_path / f"{variant}.json") for variant in variants],
        timings=[str(tmp_path / f"{variant}.timing.json") for variant in variants],
        summary=str(summary), plots=list(map(str, plots)), baselines={},
    )  # fmt: skip
    full, floor = read_summary(summary)
    assert full["variant"] == "full"
    assert full["latent_relative_error_mean"] == full["velocity_error_mean"] == 0
    assert full["psnr_median"] == float("inf")
    assert 0 < floor["latent_relative_error_median"] < 1e-4
    assert 0 < floor["velocity_error_mean"] < 1e-4
    assert floor["captions"] == 3
    assert floor["judge_accuracy"] is None
    assert full["model_bytes"] == floor["model_bytes"]
    assert full["step_seconds"] > 0
    assert all(plot.read_text().startswith("<svg") for plot in plots)
    assert all(plot.with_suffix(".png").read_bytes().startswith(b"\x89PNG") for plot in plots)


def test_errors_of_blocks_are_measured_at_the_references_latents(tmp_path, model, shard):
    evaluate(tmp_path, model, shard, ["full", "noise-floor"])
    documents = [
        read_json(tmp_path / f"{variant}.json", "ditquant.evaluation")
        for variant in ("full", "noise-floor")
    ]
    assert documents[0]["block_sqnr"] is None
    blocks = documents[1]["block_sqnr"]
    assert blocks["captions"] == 3
    assert list(blocks["streams"]) == ["mm00.img", "mm00.txt", "mm01.img"]
    # Inputs and weights keep 11 bits: one rounding is 10 log10(12 x 2^22) = 77 dB at the least, and
    # the squares of some tens of them add up.
    values = [value for decibels in blocks["streams"].values() for value in decibels]
    assert len(values) == 3 * len(documents[1]["measured_steps"])
    assert all(55 < value < 110 for value in values)


def test_evaluations_are_the_same_every_time_and_hold_no_times(tmp_path, model, shard):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for name in ("a", "b"):
        evaluate(tmp_path / name, model, shard, ["noise-floor"])
    files = ("noise-floor.json", "reference.safetensors", "reference_blocks.safetensors")
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert "seconds" not in json.dumps(json.loads((tmp_path / "a" / files[0]).read_text()))
