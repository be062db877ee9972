"""A recipe whose blocks are tuned together at the end, in a real run."""

from __future__ import annotations

import json

import pytest

from ditquant.artifacts import load_tensors, read_json
from ditquant.backend import mx
from ditquant.weights.tuning import FORMAT

RECIPES = {
    "plain": {"rounding": "rtn", "group_size": 32},
    "tuned": {
        "rounding": "rtn", "group_size": 32, "tune_iterations": 20, "tune_batch_size": 4,
        "tune_learning_rate": 0.01, "tune_stride": 2,
    },
}  # fmt: skip


@pytest.fixture
def recipes(workspace):
    workspace.config["recipes"] = RECIPES
    return workspace


def checkpoint(name: str) -> str:
    return f"results/tiny/weights/{name}/model/model.safetensors"


def test_only_recipes_that_ask_for_it_are_tuned(recipes):
    assert "tune_weights" not in recipes.plan(checkpoint("plain"))
    plan = recipes.plan(checkpoint("tuned"))
    assert plan["tune_weights"] == 1
    # The trajectories of the weight track's two images, and no block more than there are.
    assert plan["generate_calibration"] == 2
    assert plan["optimize_block"] == 2
    message = recipes.error("results/tiny/weights/plain/tuned.json")
    assert "Unknown recipe that is tuned 'plain'" in message


def test_a_tuned_recipe_has_other_scales_and_says_how_it_went(drawn):
    recipes = drawn
    recipes.config["recipes"] = RECIPES
    recipes.snakemake(
        *(checkpoint(name) for name in RECIPES), "results/tiny/weights/tuned/plots/history.png"
    )
    folder = recipes.results / "weights"
    plain, tuned = (
        load_tensors(folder / name / "model" / "model.safetensors", "ditquant.checkpoint_weights")
        for name in RECIPES
    )
    document = read_json(folder / "tuned" / "tuned.json", FORMAT)
    assert document["kept"] == "tuned"
    assert document["error"]["tuned"] < document["error"]["start"]
    assert document["history"][-1]["iteration"] == 20
    scales = [name for name in plain if name.endswith(".scales")]
    assert scales
    for name in scales:
        assert mx.array_equal(
            plain[name.replace(".scales", ".weight")], tuned[name.replace(".scales", ".weight")]
        )
    moved = [name for name in scales if not mx.array_equal(plain[name], tuned[name])]
    assert len(moved) > len(scales) / 2
    config = json.loads((folder / "tuned" / "model" / "config.json").read_text("utf-8"))
    assert config["recipe"]["tune_iterations"] == 20
    assert not any(path.name.startswith(".") for path in (folder / "tuned").iterdir())
    assert recipes.plan(checkpoint("tuned")) == {}

    # Other tuning redoes no block.
    recipes.config["recipes"]["tuned"] = {**RECIPES["tuned"], "tune_learning_rate": 0.02}
    assert recipes.plan(checkpoint("tuned")) == {"tune_weights": 1, "assemble_weights": 1}
