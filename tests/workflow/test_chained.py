"""A recipe that learns on quantized inputs: its blocks are made one after the other."""

from __future__ import annotations

import json

import pytest

from support.models import write_folder

from .conftest import Workspace

WEIGHTS = "results/tiny/weights/chain"
CHAIN = {"rounding": "adaround", "inputs": "quantized", "iterations": 10, "batch_size": 4}


@pytest.fixture
def chained(tmp_path, configuration) -> Workspace:
    """Three blocks, and a recipe on two images of two cached steps."""
    folder = write_folder(tmp_path / "model" / "tiny", depth_multimodal=3)
    (tmp_path / "run").mkdir()
    config = {
        **configuration,
        "model": {"name": "local", "checkpoint": str(folder)},
        "weights": {"num_images": 2, "stride": 3},
        "recipes": {**configuration["recipes"], "chain": CHAIN},
    }
    return Workspace(tmp_path / "run", config)


@pytest.mark.slow
def test_a_chain_of_blocks(chained):
    images = {"encode_prompts": 1, "generate_calibration": 2, "cache_block_io": 2}
    # The first block has nothing before it; the next one needs it, and no later one.
    for count, block in enumerate(("mm00", "mm01"), start=1):
        chain = {"optimize_block": count}
        assert chained.plan(f"{WEIGHTS}/blocks/{block}.safetensors") == {**images, **chain}

    checkpoint = f"{WEIGHTS}/model/model.safetensors"
    chained.snakemake(checkpoint)
    blocks = chained.folder / WEIGHTS / "blocks"
    assert (chained.folder / checkpoint).stat().st_size > 0
    made = [(blocks / f"mm0{index}.safetensors").stat().st_mtime_ns for index in range(3)]
    assert made == sorted(made)
    for index in range(3):
        document = json.loads((blocks / f"mm0{index}.json").read_text("utf-8"))
        assert document["block"] == f"mm0{index}"
        assert document["recipe"]["inputs"] == "quantized"
        assert document["history"][-1]["iteration"] == CHAIN["iterations"]
    assert chained.plan(checkpoint) == {}

    # A block that is lost is made again, and none before it.
    (blocks / "mm02.safetensors").unlink()
    assert chained.plan(f"{WEIGHTS}/blocks/mm02.safetensors") == {"optimize_block": 1}
