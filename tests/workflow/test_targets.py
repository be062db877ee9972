"""Each target makes what its name says, and asking for one thing makes that thing alone."""

from __future__ import annotations

import csv
import json

import pytest
import yaml

from ditquant.artifacts import load_metadata, load_tensors
from ditquant.seals import VERSIONS


def test_a_fresh_clone_shows_the_plan(workspace):
    plan = workspace.plan()
    assert plan["generate_calibration"] == 3
    assert plan["cache_block_io"] == 2
    assert plan["collect_activations"] == 2
    assert plan["optimize_block"] == 4  # two recipes of two blocks
    assert plan["assemble_weights"] == 2
    assert plan["render_report"] == 1
    assert not (workspace.folder / "results").exists()


def test_a_pattern_evaluates_every_recipe(workspace):
    workspace.config["evaluation"] = {"captions": 2, "variants": ["*-weights"]}
    defaults = yaml.safe_load((workspace.root / "config" / "config.yaml").read_text())
    recipes = {*defaults["recipes"], *workspace.config["recipes"]}
    plan = workspace.plan("evaluate")
    assert plan["assemble_weights"] == len(recipes)
    assert plan["evaluate_variant"] == 2 + len(recipes)  # full, and the noise floor


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("calibration/0001.safetensors", {"encode_prompts": 1, "generate_calibration": 1}),
        (
            "block_io/0001.safetensors",
            {"encode_prompts": 1, "generate_calibration": 1, "cache_block_io": 1},
        ),
        (
            "weights/adaround/blocks/mm01.safetensors",
            {
                "encode_prompts": 1,
                "generate_calibration": 2,
                "cache_block_io": 2,
                "optimize_block": 1,
            },
        ),
        (
            "activations/stats/0001.safetensors",
            {"encode_prompts": 1, "generate_calibration": 1, "collect_activations": 1},
        ),
        ("images/full/p01.png", {"encode_prompts": 1, "generate_image": 1}),
    ],
)
def test_one_thing_builds_only_what_it_needs(workspace, target, expected):
    assert workspace.plan(f"results/tiny/{target}") == expected


def test_one_plot_builds_no_other(finished, tmp_path):
    copy = finished.copy(tmp_path / "copy")
    plots = sorted((copy.results / "activations" / "plots").glob("*.png"))
    assert len(plots) == 11
    assert all(plot.with_suffix(".svg").is_file() for plot in plots)
    assert (plots[0].parent / "drift.gif").is_file()
    for plot in plots:
        plot.unlink()
    target = str(plots[0].relative_to(copy.folder))
    assert copy.plan(target) == {"visualize_activations": 1}
    copy.snakemake(target)
    assert [p for p in plots if p.exists()] == [plots[0]]


def test_everything_of_the_contract_is_there(finished):
    results = finished.results
    assert len(list((results / "conditioning").glob("calibration-000-*.safetensors"))) == 1
    for name in (
        "calibration/0000.safetensors",
        "calibration/0000.png",
        "calibration/manifest.json",
        "block_io/0000.safetensors",
        "activations/stats/0000.safetensors",
        "activations/layer_statistics.json",
        "activations/layer_statistics.safetensors",
        "activations/layer_temporal_analysis.json",
        "activations/quant_config.json",
        "activations/quant_config_multitier.json",
        "weights/adaround/blocks/mm00.safetensors",
        "weights/adaround/blocks/mm00.json",
        "weights/adaround/model/config.json",
        "weights/adaround/model/model.safetensors",
        "images/full/p00.png",
        "images/adaround-multitier/p01.png",
        "compare/adaround-a8/p00.png",
        "compare/adaround-weights/diff_stats.json",
        "evaluation/adaround-a8.json",
        "evaluation/summary.csv",
        "evaluation/plots/errors.svg",
        "evaluation/plots/blocks.png",
        "report/index.html",
        "logs/generate_calibration/0000.log",
        "benchmarks/generate_calibration/0000.tsv",
    ):
        assert (results / name).stat().st_size > 0, name


def test_nothing_else_is_written(finished):
    outside = {path.name for path in finished.folder.iterdir()}
    assert outside == {"results", ".snakemake", "config.yaml"}
    assert not list(finished.folder.rglob("*.partial*"))


def test_every_json_names_its_format(finished):
    for path in finished.results.rglob("*.json"):
        document = json.loads(path.read_text("utf-8"))
        assert document["version"] == VERSIONS[document["format"]], path


def test_a_trajectory_holds_every_step(finished):
    path = finished.results / "calibration" / "0001.safetensors"
    tensors, metadata = (
        load_tensors(path, "ditquant.calibration"),
        load_metadata(path, "ditquant.calibration"),
    )
    assert tensors["latents"].shape == (7, 8, 8, 16)
    assert tensors["sigmas"].shape == (7,)
    assert tensors["timesteps"].tolist() == (tensors["sigmas"][:-1] * 1000).tolist()
    assert metadata["seed"] == "43"


def test_manifest_lists_the_images(finished):
    manifest = json.loads((finished.results / "calibration" / "manifest.json").read_text())
    assert [entry["image"] for entry in manifest["images"]] == ["0000", "0001", "0002"]
    assert [entry["seed"] for entry in manifest["images"]] == [42, 43, 44]


def test_summary_has_the_columns_and_rows_of_the_contract(finished):
    with (finished.results / "evaluation" / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    measured = ("latent_relative_error_median", "latent_relative_error_mean", "psnr_median")
    measured += ("ssim_median", "velocity_error_mean", "judge_accuracy")
    columns = ["variant", "captions", *measured, "model_bytes", "step_seconds", "peak_bytes"]
    assert list(rows[0])[: len(columns)] == columns
    assert {"latent_relative_error_median_low", "latent_relative_error_median_high"} <= set(rows[0])
    variants = [row["variant"] for row in rows]
    assert {"full", *finished.config["evaluation"]["variants"]} < set(variants)
    errors = {row["variant"]: float(row["latent_relative_error_mean"]) for row in rows}
    assert errors["full"] == 0.0
    assert errors["rtn-weights"] > 0.0
    sizes = {row["variant"]: int(row["model_bytes"]) for row in rows}
    assert sizes["adaround-weights"] < sizes["full"]


def test_a_second_run_has_nothing_to_do(finished, tmp_path):
    assert finished.copy(tmp_path / "copy").plan() == {}


def test_own_prompt_draws_only_that_prompt(finished, tmp_path):
    copy = finished.copy(tmp_path / "copy")
    before = copy.digests()
    prompt = 'a "large" ring,\nroj\u017eowy 赤い'
    plan = copy.plan("compare", "--config", f"prompt={prompt}")
    assert plan["generate_image"] == 4  # full and three variants of one prompt
    assert "generate_calibration" not in plan
    copy.snakemake("compare", "--config", f"prompt={prompt}")
    made = set(copy.digests()) - set(before)
    pictures = [name for name in made if name.startswith("compare/") and name.endswith(".png")]
    assert len(pictures) == 3
    assert {name: copy.digests()[name] for name in before if name.endswith(".png")} == {
        name: digest for name, digest in before.items() if name.endswith(".png")
    }
