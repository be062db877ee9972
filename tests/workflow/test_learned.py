"""What `taqdit` learns of activations is what its variants are quantized by; others do not ask."""

from __future__ import annotations

import csv
import json
import re

import numpy as np
import pytest

from ditquant.artifacts import load_metadata, read_json

TAQDIT = {
    "rounding": "taqdit", "grid": "channel", "inputs": "mixed", "iterations": 30, "batch_size": 4,
    "learning_rate": 0.04, "activation_learning_rate": 0.001, "activation_bits": 6,
}  # fmt: skip
TIERS = {"mode": "sensitivity", "average_bits": 6, "stride": 3, "images": 1}


@pytest.fixture
def learned(workspace):
    return configured(workspace)


def configured(workspace):
    """A recipe that learns ranges and one that does not, both with scales that may be learned."""
    workspace.config |= {
        "recipe": "taqdit",
        "recipes": {"rtn": {"rounding": "rtn"}, "taqdit": TAQDIT},
        "evaluation": {"captions": 2, "batch_size": 2, "variants": ["taqdit-own", "taqdit-plain"]},
    }
    workspace.config["activations"] = {
        **workspace.config["activations"],
        "granularity": "static", "channel_group": None,
        "variants": {"own": {"bits": 6, "range": "learned"}, "plain": {"bits": 6}},
    }  # fmt: skip
    return workspace


def asked_for_blocks(workspace, *targets):
    """Of each configuration: whether the job that makes it has blocks' files among its inputs."""
    done = workspace.snakemake(*targets, "--dry-run")
    # Nothing was made yet, so that the reason for a job lists all of its inputs.
    reasons = dict(
        re.findall(r"^ *Reason: Missing output files: (\S+); (.*)$", done.stdout, re.MULTILINE)
    )
    return ["blocks/mm00.safetensors" in reasons[target] for target in targets]


def test_plans(learned):
    owners = ["weights/taqdit/", ""]
    assert learned.activation_jobs(owners, "evaluate") == [[2, 1, 0, 0, 2], [0, 0, 0, 0, 0]]
    folder = "results/tiny/weights/taqdit/activations"
    names = ("quant_config_own.json", "quant_config_plain.json", "quant_config.json")
    assert asked_for_blocks(learned, *(f"{folder}/{name}" for name in names)) == [
        True, False, False,
    ]  # fmt: skip

    # Balanced rounding to nearest has scales of its own, of which it learns none.
    learned.config["activations"]["range"] = "learned"
    learned.config["recipes"]["smooth"] = {"rounding": "rtn", "balance": "smoothquant"}
    # Rounding to nearest has the shared ones, which are made without any weights.
    assert asked_for_blocks(
        learned,
        f"{folder}/quant_config.json",
        f"{folder}/quant_config_multitier.json",
        "results/tiny/weights/smooth/activations/quant_config_own.json",
        "results/tiny/activations/quant_config_own.json",
    ) == [True, True, False, False]
    learned.config |= {"recipe": "rtn", "evaluation": {"captions": 2, "variants": ["rtn-own"]}}
    assert learned.activation_jobs(owners, "evaluate") == [[0, 0, 0, 0, 0], [2, 1, 0, 0, 1]]


def test_impossible_combinations_are_named(learned):
    learned.config["activations"]["variants"]["own"]["granularity"] = "polynomial"
    message = learned.error("--dry-run")
    assert "activations.variants.own: range learned does not go with granularity poly" in message
    assert "Traceback (most recent call last)" not in message


def test_variants_are_quantized_by_what_was_learned(drawn):
    learned = configured(drawn)
    learned.config["activations"]["variants"]["tiers"] = {
        "tiers": TIERS, "range": "learned", "granularity": "step",
    }  # fmt: skip
    learned.config["evaluation"]["variants"].append("taqdit-tiers")
    assert learned.plan("evaluate")["measure_sensitivity"] == 1
    learned.snakemake("evaluate")
    assert learned.plan("evaluate") == {}

    weights = learned.results / "weights" / "taqdit"
    own = read_json(weights / "activations" / "quant_config_own.json", "ditquant.quant_config")
    assert own["model"] == "tiny by recipe taqdit"
    assert own["configuration"]["range"] == "learned"
    plain = read_json(weights / "activations" / "quant_config_plain.json", "ditquant.quant_config")
    found = 0
    for file in sorted((weights / "blocks").glob("*.safetensors")):
        for name, (step, zero) in json.loads(
            load_metadata(file, "ditquant.block_weights")["activations"]
        ).items():
            entry = own["layers"][name.replace(".qkv", ".v_proj")]
            assert entry["learned"] is True
            # 6 bits were learned and 6 are asked for: the step is the scale.
            assert np.float32(entry["scales"][0]) == np.float32(step)
            assert np.float32(entry["shifts"][0]) == np.float32((32 - zero) * step)
            found += 1
    assert found > 0, "no block kept what it learned"
    for name, entry in own["layers"].items():
        if "learned" not in entry:
            assert entry == plain["layers"][name]
    tiers = read_json(weights / "activations" / "quant_config_tiers.json", "ditquant.quant_config")
    assert [name for name, entry in tiers["layers"].items() if "learned" in entry] == [
        name for name, entry in own["layers"].items() if "learned" in entry
    ]
    with (learned.results / "evaluation" / "summary.csv").open(newline="") as table:
        errors = {
            row["variant"]: row["latent_relative_error_mean"] for row in csv.DictReader(table)
        }
    assert errors["taqdit-own"] != errors["taqdit-plain"]
