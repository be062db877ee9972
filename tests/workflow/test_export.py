"""`snakemake export`, and what a recipe's `quantize` redoes, in real runs."""

from __future__ import annotations

import json

from ditquant.artifacts import load_metadata

FILES = [f"diffusionkit-{kind}.safetensors" for kind in ("4bit", "fp16")]


def test_export_plans_both_files_of_the_recipe(workspace):
    plan = workspace.plan("export")
    assert plan["export_weights"] == 2
    assert plan["assemble_weights"] == 1
    assert plan["optimize_block"] == 2


def test_an_unknown_export_lists_those_there_are(workspace):
    message = workspace.error("results/tiny/weights/rtn/diffusionkit-int4.safetensors")
    assert "Unknown export 'diffusionkit-int4'" in message
    assert "diffusionkit-4bit, diffusionkit-fp16" in message


def test_exports_are_made_and_another_scope_redoes_no_block(workspace):
    """The small model's text is 32 wide: float16 is written, and 4 bits say why they are not."""
    workspace.config |= {"recipe": "rtn", "recipes": {"rtn": {"rounding": "rtn"}}}
    folder = workspace.results / "weights" / "rtn"
    four_bit, half = (f"results/tiny/weights/rtn/{name}" for name in FILES)
    workspace.snakemake(half)
    metadata = load_metadata(folder / FILES[1], "ditquant.export")
    assert json.loads(metadata["recipe"])["name"] == "rtn"
    message = workspace.error(four_bit)
    assert "32 inputs" in message
    assert "diffusionkit-fp16" in message
    assert "Traceback" not in message

    workspace.config["recipes"] = {"rtn": {"rounding": "rtn", "quantize": "blocks+adaln"}}
    assert workspace.plan(half) == {"assemble_weights": 1, "export_weights": 1}
    workspace.config["recipes"] = {"rtn": {"rounding": "rtn", "other_bits": 6}}
    assert workspace.plan(half) == {"assemble_weights": 1, "export_weights": 1}
    workspace.config["recipes"] = {"rtn": {"rounding": "rtn", "bits": 3}}
    assert workspace.plan(half)["optimize_block"] == 2
