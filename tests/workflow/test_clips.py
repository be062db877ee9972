"""Ranges by measured error: which images and jobs they ask for, and what comes of them."""

from __future__ import annotations

import pytest

from ditquant.artifacts import load_metadata, read_json


@pytest.fixture
def clipped(workspace):
    return configured(workspace)


def configured(workspace):
    """Static ranges of four bits, whole and measured, and the same of a rotated recipe."""
    workspace.config |= {
        "recipe": "turned",
        "recipes": {"plain": {"rounding": "rtn"}, "turned": {"rounding": "rtn", "rotation": 16}},
        "evaluation": {"captions": 2, "batch_size": 2, "variants": ["full-cut", "turned-cut"]},
    }
    workspace.config["activations"] = {
        **workspace.config["activations"],
        "granularity": "static", "channel_group": None, "clips": {"images": 1, "stride": 3},
        "variants": {"cut": {"bits": 4, "range": "measured"}, "whole": {"bits": 4}},
    }  # fmt: skip
    return workspace


def test_held_out_images_are_measured_where_ranges_are(clipped):
    plan = clipped.plan("results/tiny/activations/quant_config_cut.json")
    # Two images make the statistics, and the third is held out.
    assert plan["generate_calibration"] == 3
    assert plan["measure_clips"] == 1
    assert "measure_clips" not in clipped.plan("results/tiny/activations/quant_config_whole.json")
    clipped.config["activations"]["clips"]["images"] = 2
    plan = clipped.plan("results/tiny/activations/quant_config_cut.json")
    # There are no four images: one of those that were measured serves again.
    assert plan["generate_calibration"] == 3
    assert plan["measure_clips"] == 2
    clipped.config["activations"]["granularity"] = "dynamic-token"
    assert "measure_clips" not in clipped.plan("results/tiny/activations/quant_config_cut.json")
    clipped.config["activations"]["granularity"] = "static"
    message = clipped.error("results/tiny/activations/clips/whole/0002.safetensors")
    assert "'whole' tries no ranges" in message


def test_measured_ranges_are_drawn_with(drawn):
    clipped = configured(drawn)
    plan = clipped.plan("evaluate")
    assert plan["measure_clips"] == 2
    clipped.snakemake("evaluate")
    assert clipped.plan("evaluate") == {}
    for folder in (clipped.results, clipped.results / "weights" / "turned"):
        file = folder / "activations" / "quant_config_cut.json"
        document = read_json(file, "ditquant.quant_config")
        assert document["clips"]["images"] == ["0002"]
        shares = [entry["clip_shares"][0] for entry in document["layers"].values()]
        assert min(shares) < 1
        files = list((folder / "activations" / "clips" / "cut").iterdir())
        assert [file.name for file in files] == ["0002.safetensors"]
        assert load_metadata(files[0], "ditquant.clip_errors")
    # Of six steps every third was tried; other rows of other images redo nothing else.
    clipped.config["activations"]["clips"]["stride"] = 2
    plan = clipped.plan("results/tiny/activations/quant_config_cut.json")
    assert (plan["measure_clips"], plan["analyze_activations"]) == (1, 1)
    assert "collect_activations" not in plan
