"""A variant has the weights and the activations that its name says."""

from __future__ import annotations

import numpy as np
import pytest

from ditquant.activations.quant_config import CONFIG_FORMAT
from ditquant.artifacts import save_tensors, write_json
from ditquant.backend import mx, to_numpy
from ditquant.checkpoints.checkpoint import FORMAT, checkpoint_tensors, quantization_config
from ditquant.errors import UserError
from ditquant.evaluation.variants import NOISE_FLOOR, open_variant
from ditquant.models.spec import read_spec
from ditquant.network.diffusionkit import load_network
from ditquant.network.sampling import sigma_schedule, velocity_at
from ditquant.weights.grids import (
    Grid,
    dequantize,
    fit_scales,
    fractional_codes,
    nearest_codes,
    pack,
)
from support.models import parameters, write_folder

GRID = Grid("group", 4, 32)


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    return read_spec("local", str(write_folder(tmp_path_factory.mktemp("model"))))


@pytest.fixture(scope="module")
def quantized(spec):
    """Linear's name -> its packed weight, rounded to nearest."""
    packed = {}
    for linear in load_network(spec, mx.float32).linears:
        weight = linear.module.weight
        scales = fit_scales(weight, GRID)
        packed[linear.name] = pack(
            nearest_codes(fractional_codes(weight, scales), GRID.bits), scales
        )
    return packed


@pytest.fixture(scope="module")
def weights(tmp_path_factory, spec, quantized):
    folder = tmp_path_factory.mktemp("weights")
    network = load_network(spec, mx.float32)
    save_tensors(
        folder / "model.safetensors",
        checkpoint_tensors(network, quantized),
        "ditquant.checkpoint_weights",
    )
    document = {"model": spec.name, "quantization": quantization_config(network, quantized)}
    write_json(folder / "config.json", FORMAT, document)
    return folder / "model.safetensors"


@pytest.fixture(scope="module")
def quant_config(tmp_path_factory, spec):
    """Steps of 0.25 everywhere: coarse enough to be seen."""
    layers = {
        linear.name: {
            "input": linear.name,
            "channels": linear.module.weight.shape[1],
            "bits": [8],
            "scales": [0.25],
        }
        for linear in load_network(spec, mx.float32).linears
    }
    path = tmp_path_factory.mktemp("activations") / "quant_config.json"
    write_json(path, CONFIG_FORMAT, {"model": spec.name, "sigmas": [1.0], "layers": layers})
    return path


def velocity(spec, name, weights=None, quant_config=None, dtype=mx.float32):
    """Of a fixed input at the first sigma, in float32."""
    mx.random.seed(9)
    latents = mx.random.normal((1, 8, 8, 16))
    tokens, pooled = mx.random.normal((2, 7, 32)), mx.random.normal((2, 32))
    sigmas = sigma_schedule(4, spec.shift)
    with open_variant(spec, dtype, name, weights, quant_config) as variant:
        tokens, pooled = tokens.astype(variant.dtype), pooled.astype(variant.dtype)
        variant.before_step(1, sigmas[1].item())
        timestep = (sigmas[1] * 1000).astype(variant.dtype)
        result = velocity_at(variant.network, latents, sigmas[1], timestep, tokens, pooled, 4.0)
        return to_numpy(result.astype(mx.float32))


def distance(value: np.ndarray, reference: np.ndarray) -> float:
    return float(((value - reference) ** 2).sum() / (reference**2).sum())


def test_full_is_the_loaded_model(spec):
    with open_variant(spec, mx.float32, "full") as variant:
        expected = parameters(load_network(spec, mx.float32))
        found = parameters(variant.network)
    assert all(mx.array_equal(found[name], expected[name]) for name in expected)


def test_weights_are_those_of_the_checkpoint(spec, weights, quantized):
    with open_variant(spec, mx.float32, "rtn-weights", weights) as variant:
        for linear in variant.network.linears:
            assert mx.array_equal(linear.module.weight, dequantize(quantized[linear.name]))


def test_each_kind_is_further_from_full_precision(spec, weights, quant_config):
    full = velocity(spec, "full")
    floor = distance(velocity(spec, NOISE_FLOOR), full)
    weights_only = velocity(spec, "rtn-weights", weights)
    both = velocity(spec, "rtn-a8", weights, quant_config)
    # float16 keeps 11 bits: relative errors of 2^-11 at most each, squared and summed.
    assert 0 < floor < 1e-5 < distance(weights_only, full)
    assert distance(both, weights_only) > 1e-4


def test_native_computes_what_dequantized_weights_compute(spec, weights):
    native = velocity(spec, "rtn-native", weights)
    # The same weights, products summed in another order.
    assert distance(native, velocity(spec, "rtn-weights", weights)) < 1e-9


def test_the_noise_floor_of_a_half_precision_model_is_computed_in_float32(spec):
    with open_variant(spec, mx.float16, NOISE_FLOOR) as variant:
        assert variant.dtype == mx.float32
        assert all(value.dtype == mx.float32 for value in parameters(variant.network).values())


@pytest.mark.parametrize(
    ("name", "needs"), [("rtn-weights", "checkpoint"), ("rtn-a8", "activation configuration")]
)
def test_a_variant_without_its_files_says_what_it_needs(spec, weights, name, needs):
    given = None if needs == "checkpoint" else weights
    with (
        pytest.raises(UserError, match=f"Variant {name} needs .*{needs}"),
        open_variant(spec, mx.float32, name, given),
    ):
        pass


def test_an_unknown_variant_is_refused(spec):
    with (
        pytest.raises(UserError, match="Unknown variant 'rtn'"),
        open_variant(spec, mx.float32, "rtn"),
    ):
        pass
