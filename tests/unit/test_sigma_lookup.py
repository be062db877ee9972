"""All inputs are looked up at once, and get what each would get alone."""

from __future__ import annotations

import numpy as np
import pytest

from ditquant.activations.granularity import GRANULARITIES
from ditquant.activations.quant_config import parse_quant_config
from ditquant.activations.quant_params import stacked
from ditquant.activations.sigma_lookup import SigmaLookup, params_along
from support.activations import statistics
from support.schemes import params_at, single_tier

STEPS = 6


@pytest.fixture(scope="module")
def measured():
    random = np.random.default_rng(5)
    values = random.standard_normal((STEPS, 40, 64)).astype(np.float32)
    widths = np.geomspace(1, 5, STEPS, dtype=np.float32)[:, None, None]
    gelu = np.maximum(values, -0.17)
    return statistics({"a": values * widths, "b": values, "fc2": gelu}, post_gelu=("fc2",))


def configuration(measured, granularity, fine=False):
    options = {"groups": 3, "degree": 2, "channel_group": 32 if fine else None,
                           "channel_shift": fine}  # fmt: skip
    return parse_quant_config(single_tier(measured, 6, granularity, "absmax", **options), "here")


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("fine", [False, True])
def test_inputs_together_have_the_numbers_of_each_alone(measured, granularity, fine):
    config = configuration(measured, granularity, fine)
    layers = config.layers.values()
    lookup = SigmaLookup(config, layers)
    for sigma in (1.3, 0.97, 0.61, 0.2, 0.01):
        alone = stacked([params_at(config, layer, sigma) for layer in layers])
        together = lookup.at(sigma)
        assert together.bits == alone.bits == (6, 6, 6)
        assert together.unsigned == alone.unsigned
        assert together.groups == alone.groups
        np.testing.assert_array_equal(together.scales, alone.scales)
        for one, other in zip(together.shifts, alone.shifts, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("granularity", "keys"),
    [("static", 1), ("group", 3), ("step", STEPS), ("polynomial", 20), ("dynamic-token", 1)],
)
def test_a_key_stands_for_equal_numbers(measured, granularity, keys):
    config = configuration(measured, granularity)
    lookup = SigmaLookup(config, config.layers.values())
    found = {}
    for sigma in np.linspace(1, 0.1, 20).tolist():
        numbers = lookup.at(sigma)
        np.testing.assert_array_equal(
            numbers.scales, found.setdefault(lookup.key(sigma), numbers).scales
        )
    assert len(found) == keys


def test_a_layer_along_the_schedule_has_its_listed_scales(measured):
    config = configuration(measured, "step")
    layer = config.layers["a"]
    numbers = params_along(config, layer, config.sigmas)
    assert tuple(one.scale for one in numbers) == layer.scales
    # The widest range of a normal input grows fivefold over the steps.
    assert numbers[-1].scale > 3 * numbers[0].scale
