"""A recipe with rotated inputs, from planning to pictures and exports."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ditquant.artifacts import load_metadata, load_tensors, read_json
from ditquant.backend import to_numpy
from ditquant.weights.rotation import signs

LEARNED = {
    "rounding": "adaround", "rotation": 16, "start": "gptq", "clip": True, "inputs": "quantized",
    "iterations": 30, "batch_size": 4, "tune_iterations": 4, "tune_batch_size": 2,
}  # fmt: skip


@pytest.fixture
def turned(drawn):
    """One learned and tuned recipe, one prompt, and the variants that use its checkpoint."""
    drawn.config |= {
        "recipe": "turned",
        "recipes": {"plain": {"rounding": "rtn"}, "turned": LEARNED},
        "inference": {"prompts": ["a small red star"], "num_steps": 3,
                      "variants": ["weights", "native", "a8"]},
    }  # fmt: skip
    return drawn


def final_latents(workspace, variant):
    path = workspace.results / "images" / variant / "p00.safetensors"
    return to_numpy(load_tensors(path, "ditquant.latents")["latents"]).astype(np.float64)


def test_a_rotated_recipe_is_quantized_measured_drawn_and_exported(turned):
    jobs = turned.activation_jobs(["weights/turned/", ""], "compare")
    assert jobs == [[2, 1, 1, 0, 0], [0, 0, 0, 0, 0]]
    export = "results/tiny/weights/turned/diffusionkit-fp16.safetensors"
    turned.snakemake("compare", export, "results/tiny/weights/turned/model/activations.safetensors")
    folder = turned.results / "weights" / "turned"
    assert json.loads((folder / "model" / "config.json").read_text())["rotation"] == 16

    weights, native, quantized = (
        final_latents(turned, f"turned-{kind}") for kind in ("weights", "native", "a8")
    )
    # The same numbers in another order of operations; 8-bit activations change more than that.
    size = np.sqrt((weights**2).mean())
    assert np.abs(native - weights).max() < 1e-3 * size
    assert 1e-3 * size < np.abs(quantized - weights).max() < size

    # What was measured is rotated: behind GELU values are on both sides of zero.
    config = read_json(folder / "activations" / "quant_config.json", "ditquant.quant_config")
    assert not any("shifts" in layer for layer in config["layers"].values())
    path = folder / "model" / "activations.safetensors"
    assert json.loads(load_metadata(path, "ditquant.input_ranges")["rotation"]) == 16
    np.testing.assert_array_equal(
        to_numpy(load_tensors(path, "ditquant.input_ranges")["rotation_signs.64"]), signs(64)
    )
    assert load_tensors(turned.folder / export, "ditquant.export")

    message = turned.error("results/tiny/weights/turned/diffusionkit-4bit.safetensors")
    assert "stock DiffusionKit rotates no inputs" in message
    assert "diffusionkit-fp16" in message
