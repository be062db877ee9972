"""Recipes that balance channels get activation configurations of their own, others do not."""

from __future__ import annotations

import json

import pytest

import generate_image
from ditquant.artifacts import load_metadata, load_tensors, read_json
from ditquant.backend import mx
from ditquant.evaluation.pictures import LATENTS
from ditquant.models.spec import Model
from ditquant.network.calibration import Prompt

RECIPES = {
    "rtn": {"rounding": "rtn"},
    "awq": {"rounding": "awq"},
    "smooth": {"rounding": "rtn", "balance": "smoothquant"},
}


@pytest.fixture
def balanced(workspace):
    """Three recipes, one prompt, and the variants that simulate activations."""
    workspace.config |= {
        "recipe": "awq",
        "recipes": RECIPES,
        "inference": {"prompts": ["a small red star"], "num_steps": 3,
                      "variants": ["a8", "multitier"]},
        "evaluation": {"captions": 2, "batch_size": 2, "variants": ["rtn-a8", "smooth-a8"]},
    }  # fmt: skip
    return workspace


def counted(workspace, recipe, *targets):
    """Jobs that measure, merge, and choose scales and tiers: the recipe's own, and shared ones."""
    own, shared = workspace.activation_jobs([f"weights/{recipe}/", ""], *targets)
    return own[:4], shared[:4]


def test_a_balanced_recipe_asks_for_its_own_configurations(balanced):
    # `compare` is run below; AWQ needs no statistics of the full-precision model.
    assert counted(balanced, "awq", "inference", "quantize") == ([2, 1, 1, 1], [0, 0, 0, 0])
    balanced.config["recipe"] = "smooth"
    # SmoothQuant's factors come from the shared statistics.
    assert counted(balanced, "smooth", "quantize") == ([2, 1, 1, 1], [2, 1, 0, 0])
    # For smooth-a8 and for rtn-a8.
    assert counted(balanced, "smooth", "evaluate") == ([2, 1, 1, 0], [2, 1, 1, 0])
    balanced.config["recipes"] = {
        **RECIPES, "smooth": {"rounding": "adaround", "iterations": 20, "balance": "csb"},
    }  # fmt: skip
    assert counted(balanced, "smooth", "quantize")[0] == [2, 1, 1, 1]


def test_recipes_that_balance_nothing_cause_no_new_jobs(balanced):
    balanced.config["recipe"] = "rtn"
    with_others = balanced.plan("compare")
    # Of all that the rules may measure, only the full-precision model's is.
    assert (with_others["collect_activations"], with_others["analyze_activations"]) == (2, 2)
    for target in ("compare", "quantize"):
        assert counted(balanced, "rtn", target) == ([0, 0, 0, 0], [2, 1, 1, 1]), target
    balanced.config["recipes"] = {"rtn": RECIPES["rtn"]}
    balanced.config["evaluation"]["variants"] = ["rtn-a8"]
    assert balanced.plan("compare") == with_others


def test_configurations_of_a_recipe_that_balances_nothing_are_refused(balanced):
    message = balanced.error("-n", "results/tiny/weights/rtn/activations/quant_config.json")
    assert "Recipe 'rtn' balances no channels" in message
    assert "results/tiny/activations/quant_config.json" in message
    assert "Traceback (most recent call last)" not in message
    message = balanced.error("-n", "results/tiny/weights/rtm/activations/quant_config.json")
    assert "Unknown recipe 'rtm'" in message


def test_variants_are_drawn_by_the_configurations_of_their_recipe(balanced):
    balanced.snakemake("compare")
    results = balanced.results
    folder = results / "weights" / "awq" / "activations"
    names = ("stats/0000.safetensors", "stats/0001.safetensors", "layer_statistics.json",
             "layer_statistics.safetensors", "quant_config.json",
             "quant_config_multitier.json")  # fmt: skip
    for name in names:
        assert (folder / name).stat().st_size > 0, name
    assert not (results / "activations").exists(), "nothing else was measured"
    statistics = load_metadata(
        folder / "layer_statistics.safetensors", "ditquant.activation_statistics"
    )
    assert statistics["model"] == "tiny by recipe awq"
    assert json.loads(statistics["images"]) == ["0000", "0001"]
    assert read_json(folder / "quant_config.json", "ditquant.quant_config")["model"] == (
        "tiny by recipe awq"
    )
    assert balanced.plan("compare") == {}

    draw_again(balanced, folder / "quant_config.json")
    drawn = results / "images" / "awq-a8" / "p00.safetensors"
    again = load_tensors(balanced.folder / "again.safetensors", LATENTS)
    assert mx.array_equal(again["latents"], load_tensors(drawn, LATENTS)["latents"])

    # What is behind the picture: the configuration, its statistics, the checkpoint.
    before, picture = drawn.read_bytes(), "results/tiny/images/awq-a8/p00.png"
    balanced.config["activations"]["bits"] = 4
    assert balanced.plan(picture) == {"analyze_activations": 1, "generate_image": 1}
    balanced.snakemake(picture)
    assert drawn.read_bytes() != before
    balanced.config["recipes"] = {**RECIPES, "awq": {"rounding": "awq", "bits": 3}}
    plan = balanced.plan(picture)
    assert (plan["optimize_block"], plan["assemble_weights"], plan["generate_image"]) == (2, 1, 1)
    assert counted(balanced, "awq", picture)[0] == [2, 1, 1, 0]


def draw_again(workspace, quant_config):
    """The same picture by the script alone, with this configuration."""
    results, config = workspace.results, workspace.config
    (shard,) = (results / "conditioning").glob("inference-000-*.safetensors")
    generate_image.main(
        conditioning=str(shard),
        picture=str(workspace.folder / "again.png"),
        latents=str(workspace.folder / "again.safetensors"),
        variant="awq-a8",
        model=Model.from_params({**config["model"], "dtype": "float32"}),
        prompt=Prompt("a small red star", negative="", row=0),
        num_steps=3,
        cfg_weight=4.0,
        image_size=[64, 64],
        seed=42,
        checkpoint=str(results / "weights" / "awq" / "model" / "model.safetensors"),
        quant_config=str(quant_config),
    )
