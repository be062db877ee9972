"""Ranges beside a checkpoint: under the linears' paths, the numbers that inference would use."""

from __future__ import annotations

import json

import numpy as np
import pytest

import export_ranges
from ditquant.activations.granularity import GRANULARITIES
from ditquant.activations.input_statistics import save_statistics
from ditquant.activations.observe import measure_image
from ditquant.activations.quant_config import CONFIG_FORMAT, load_quant_config
from ditquant.artifacts import load_metadata, load_tensors, write_json
from ditquant.backend import to_numpy
from ditquant.checkpoints.exported_ranges import KIND
from ditquant.network.diffusionkit import linear_path
from support.block_data import random_trajectory
from support.models import build_network
from support.schemes import params_at, single_tier


@pytest.fixture(scope="module")
def model():
    return build_network(seed=3, depth_unified=1)


@pytest.fixture(scope="module")
def statistics(model):
    return measure_image(model, random_trajectory(1, steps=5), [0, 1, 2, 3, 4], "tiny", "0000")


def test_paths_are_those_of_the_modules(model):
    linears = model.linears
    assert [linear_path(linear.name) for linear in linears] == [one.path for one in linears]


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("fine", [False, True])
def test_what_is_written_is_what_inference_looks_up(tmp_path, model, statistics, granularity, fine):
    options = {"groups": 2, "degree": 1, "channel_group": 32 if fine else None,
                           "channel_shift": fine}  # fmt: skip
    config_file, file = tmp_path / "quant_config.json", tmp_path / "activations.safetensors"
    save_statistics(tmp_path / "s.safetensors", statistics)
    document = single_tier(statistics, 8, granularity, "absmax", **options)
    write_json(config_file, CONFIG_FORMAT, document)
    export_ranges.main(str(tmp_path / "s.safetensors"), str(config_file), str(file))
    tensors = {name: to_numpy(array) for name, array in load_tensors(file, KIND).items()}
    metadata, config = load_metadata(file, KIND), load_quant_config(config_file)
    row_of = json.loads(metadata["row_of"])
    assert json.loads(metadata["channel_group"]) == options["channel_group"]
    for linear in model.linears:
        layer, path = config.layers[linear.name], linear.path
        amax = tensors[f"{path}.input_amax"]
        assert amax.max() == pytest.approx(statistics.of(linear.name).absmax.max(), rel=1e-7)
        assert json.loads(metadata["bits"])[path][0] == 8
        for step, sigma in enumerate(config.sigmas):
            numbers, row = params_at(config, layer, sigma), row_of[step]
            shift = tensors[f"{path}.input_shift"]
            shift = shift if layer.channel_shift else shift[row if len(shift) > 1 else 0]
            np.testing.assert_allclose(shift, numbers.shift, rtol=1e-6, atol=1e-7)
            assert (f"{path}.input_scale" in tensors) == (numbers.scale is not None)
            if numbers.scale is None:
                continue
            scale = tensors[f"{path}.input_scale"][row]
            np.testing.assert_allclose(scale, numbers.scale, rtol=1e-6)
            # What was measured fits: codes of 8 bits reach 127 steps from the shift.
            if granularity != "polynomial" and not linear.is_post_gelu and not fine:
                assert amax[row] <= 127 * scale * (1 + 1e-6)
