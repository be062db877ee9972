"""A recipe that balances channels has its activations measured on its own model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import collect_activations
from ditquant.activations.input_statistics import load_statistics, merge
from ditquant.artifacts import save_tensors, write_json
from ditquant.backend import mx, to_numpy
from ditquant.checkpoints.checkpoint import FORMAT, checkpoint_tensors
from ditquant.errors import UserError
from ditquant.models.spec import read_spec
from ditquant.network.diffusionkit import load_network
from ditquant.planning.digest import code_files
from ditquant.weights.balance import apply_balance, folds
from support.block_data import random_trajectory
from support.models import write_folder

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("model"))
    return {"name": "local", "checkpoint": str(folder), "dtype": "float32"}


@pytest.fixture(scope="module")
def trajectory(tmp_path_factory):
    """A stored trajectory of four steps."""
    path = tmp_path_factory.mktemp("calibration") / "0003.safetensors"
    stored = random_trajectory(seed=2)
    tensors = {name: getattr(stored, name) for name in ("latents", "sigmas", "timesteps")}
    tensors |= {"conditioning": stored.conditioning.tokens, "pooled": stored.conditioning.pooled}
    save_tensors(
        path,
        tensors,
        "ditquant.calibration",
        {"cfg_weight": stored.cfg_weight, "prompt": stored.prompt},
    )
    return str(path)


def random_factors(block, seed: int) -> dict[str, mx.array]:
    """Every fold's factors, log-uniform in 0.25 .. 4."""
    random = np.random.default_rng(seed)
    return {
        fold.name: mx.array(2 ** random.uniform(-2, 2, fold.channels).astype(np.float32))
        for fold in folds(block)
    }


@pytest.fixture(scope="module")
def folded(tmp_path_factory, model):
    """model.safetensors of a balanced checkpoint without rounding, and linear's name -> b."""
    spec = read_spec(model["name"], model["checkpoint"])
    network = load_network(spec, mx.float32)
    factors = {}
    for seed, block in enumerate(network.blocks):
        own = random_factors(block, seed)
        for fold in folds(block):
            b = to_numpy(own[fold.name])
            factors |= {linear.name: b for linear in fold.readers}
        apply_balance(block, own)
    folder = tmp_path_factory.mktemp("weights")
    save_tensors(
        folder / "model.safetensors", checkpoint_tensors(network, {}), "ditquant.checkpoint_weights"
    )
    write_json(folder / "config.json", FORMAT, {"model": spec.name, "quantization": {}})
    return str(folder / "model.safetensors"), factors


@pytest.fixture(scope="module")
def measured(tmp_path_factory, model, trajectory, folded):
    """Statistics of the full-precision model, and of the balanced one."""
    folder = tmp_path_factory.mktemp("stats")
    plain, balanced = folder / "plain.safetensors", folder / "balanced.safetensors"
    collect_activations.main(trajectory, str(plain), model, 2)
    collect_activations.main(trajectory, str(balanced), model, 2, folded[0], "smooth")
    return load_statistics(plain), load_statistics(balanced)


def test_channel_extremes_differ_by_the_factors(measured, folded):
    plain, balanced = measured
    factors = folded[1]
    assert balanced.input_of == plain.input_of
    assert balanced.steps == plain.steps == (0, 2)
    assert set(plain.input_of) - set(factors) == plain.post_gelu, "all but fc2 have a fold"
    for name in plain.input_of:
        b = factors.get(name, np.float32(1))
        for field in ("channel_min", "channel_max"):
            expected = getattr(plain.of(name), field) / b
            found = getattr(balanced.of(name), field)
            # float32 products in another order, through all blocks.
            tolerance = 2e-5 * np.abs(expected).max()
            np.testing.assert_allclose(found, expected, rtol=2e-5, atol=tolerance, err_msg=name)
        if name in factors:
            assert not np.allclose(balanced.of(name).absmax, plain.of(name).absmax, rtol=1e-3)


def test_statistics_say_whose_they_are_and_do_not_mix(measured):
    plain, balanced = measured
    assert plain.model == "tiny"
    assert balanced.model == "tiny by recipe smooth"
    assert balanced.images == ("0003",)
    with pytest.raises(UserError, match="given twice"):
        merge([plain, plain])
    other = type(balanced)(**{**vars(balanced), "images": ("0004",)})
    with pytest.raises(UserError, match="tiny by recipe smooth"):
        merge([plain, other])


def test_how_checkpoints_are_read_redoes_no_full_precision_statistics():
    def modules(*without: str) -> set[str]:
        return {path.stem for path in code_files(SCRIPTS / "collect_activations.py", without)}

    assert {"observe", "checkpoint", "grids"} <= modules()
    assert "observe" in modules("checkpoint")
    assert not {"checkpoint", "grids", "quantized"} & modules("checkpoint")
