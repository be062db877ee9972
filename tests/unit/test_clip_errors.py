"""Ranges by measured error: what is measured, and that the best of what was tried is taken."""

from __future__ import annotations

import numpy as np
import pytest

from ditquant.activations.clip_errors import (
    SHARES,
    ClipErrors,
    added,
    errors_of_rows,
    load_clip_errors,
    save_clip_errors,
    shares_of_inputs,
)
from ditquant.activations.clip_search import measure_clip_errors
from ditquant.activations.configs import clip_configs, make_config, tier_configs
from ditquant.activations.input_statistics import merge
from ditquant.activations.observe import measure_image
from ditquant.activations.quant_config import parse_quant_config
from ditquant.backend import mx, to_numpy
from ditquant.errors import UserError
from ditquant.network.blocks import tapped
from ditquant.network.sampling import predict
from support.block_data import random_trajectory
from support.models import build_network
from support.schemes import fake_quantize, params_at, scheme

MEASURED, STEPS = [0, 2, 4], [0, 4]


def asked(granularity="group", **options):
    clips = {"images": 1, "stride": 4}
    return scheme(granularity, "measured", **{"bits": 4, "groups": 2, "clips": clips, **options})


@pytest.fixture(scope="module")
def model():
    return build_network(seed=5)


@pytest.fixture(scope="module")
def held_out():
    return random_trajectory(2, steps=5)


@pytest.fixture(scope="module")
def statistics(model):
    return merge(
        [
            measure_image(model, random_trajectory(seed, steps=5), MEASURED, "tiny", f"{seed:04d}")
            for seed in (0, 1)
        ]
    )


def measure(model, held_out, statistics, asked):
    configs = clip_configs(statistics, asked)
    ticks = []
    found = measure_clip_errors(model, held_out, "0002", STEPS, configs, lambda: ticks.append(1))
    assert len(ticks) == len(STEPS)
    return found


def nothing():
    raise AssertionError("not asked for")


@pytest.fixture(scope="module")
def measured(model, held_out, statistics):
    return measure(model, held_out, statistics, asked())


def inputs_at(model, trajectory, step):
    """Linear name -> its input as rows, at full precision."""
    seen = {}
    with tapped(model.linears, lambda linear, x: seen.update({linear.name: x})):
        mx.eval(predict(model, *trajectory.at(step)), seen)
    return {name: x.reshape(-1, x.shape[-1]) for name, x in seen.items()}


@pytest.mark.parametrize("share", [0, 4, 9])
def test_an_error_is_that_of_the_linears_that_read_the_input(
    model, held_out, statistics, measured, share
):
    inputs = inputs_at(model, held_out, STEPS[1])
    config = clip_configs(statistics, asked())[4][share]
    sigma = float(held_out.sigmas[STEPS[1]].item())
    expected = dict.fromkeys(statistics.inputs, 0.0)
    for linear in model.linears:
        layer, x = config.layers[linear.name], inputs[linear.name]
        numbers = params_at(config, layer, sigma)
        change = fake_quantize(x, numbers.scale, numbers.bits, numbers.shift) - x
        product = to_numpy(change).astype(np.float64) @ to_numpy(linear.module.weight).T
        expected[layer.input] += (product**2).sum()
    for name, error in expected.items():
        # Sums of some thousand float32 products and squares.
        assert measured.errors[name][1, 0, share] == pytest.approx(error, rel=1e-3)
    assert expected.keys() == measured.errors.keys()


def test_ranges_are_shares_of_the_largest_value(statistics):
    configs = clip_configs(statistics, asked())[4]
    whole = parse_quant_config(
        make_config(statistics, scheme("group", "absmax", 4, groups=2), nothing, nothing), "here"
    )
    for share, config in zip(SHARES, configs, strict=True):
        for name, layer in config.layers.items():
            if name not in statistics.post_gelu:
                np.testing.assert_allclose(
                    layer.scales, share * np.array(whole.layers[name].scales), rtol=1e-6
                )
        assert config.row_of == whole.row_of
        # Behind GELU only the upper end moves.
        name = min(statistics.post_gelu)
        reach = np.array(config.layers[name].shifts) + 7 * np.array(config.layers[name].scales)
        full = np.array(whole.layers[name].shifts) + 7 * np.array(whole.layers[name].scales)
        np.testing.assert_allclose(reach, share * full, rtol=1e-5)


@pytest.mark.parametrize(
    ("granularity", "options"),
    [("static", {}), ("step", {"channel_group": 16}), ("group", {"channel_shift": True}),
     ("polynomial", {"degree": 1, "variable": "sigma"})],
)  # fmt: skip
def test_the_longest_range_with_about_the_least_error_is_taken(
    model, held_out, statistics, granularity, options
):
    wanted = asked(granularity, **options)
    found = measure(model, held_out, statistics, wanted)
    document = make_config(statistics, wanted, nothing, nothing, None, found)
    config = parse_quant_config(document, "here")
    tried = clip_configs(statistics, wanted)[4]
    assert document["clips"] == {
        "images": ["0002"],
        "sigmas": pytest.approx(found.sigmas.tolist()),
        "shares": list(SHARES),
    }
    shorter = 0
    for name, entry in document["layers"].items():
        shares, errors = np.array(entry["clip_shares"]), np.array(entry["clip_errors"])
        assert errors.shape == (len(shares), len(SHARES))
        assert (errors[:, 0] == 1).all()
        taken = errors[np.arange(len(shares)), [SHARES.index(share) for share in shares]]
        # The numbers in the file have six digits.
        assert (taken <= 1.1 * errors.min(axis=1) * (1 + 1e-5)).all()
        for row, share in enumerate(shares):
            longer = np.array(SHARES) > share
            assert (errors[row, longer] > 1.1 * errors[row].min() * (1 - 1e-5)).all()
        shorter += (shares < 1).sum()
        if granularity == "polynomial":
            continue
        rows = range(len(shares))
        expected = [tried[SHARES.index(share)].layers[name].scales for share in shares]
        np.testing.assert_allclose(
            config.layers[name].scales, [expected[row][row] for row in rows], rtol=1e-6
        )
    # At four bits hardly any normal input is best covered whole.
    assert shorter > 0


def test_tiers_take_what_is_best_at_their_bits(model, held_out, statistics):
    wanted = asked(bits=None, tiers={"linear": [1.0, 3.0], "post_gelu": [1.0, 3.0]})
    found = measure(model, held_out, statistics, wanted)
    assert found.bits == (4, 6, 8)
    document = make_config(statistics, wanted, nothing, nothing, None, found)
    shares = shares_of_inputs(errors_of_rows(statistics, document["groups"], found))
    for name, entry in document["layers"].items():
        source = statistics.input_of[name]
        expected = [shares[b][source][row] for row, b in enumerate(entry["bits"])]
        np.testing.assert_allclose(entry["clip_shares"], expected)
    alone = tier_configs(statistics, wanted, None, found)
    name = next(name for name in statistics.input_of if name not in statistics.post_gelu)
    # More bits need less clipping.
    mean = [np.mean([one.mean() for one in shares[b].values()]) for b in (4, 6, 8)]
    assert mean[0] < mean[1] < mean[2]
    assert alone[8].layers[name].bits == (8, 8)


def test_a_row_sums_over_its_steps_and_takes_the_nearest_sigma(statistics):
    name = next(iter(statistics.inputs))
    errors = np.arange(2 * len(SHARES), dtype=float).reshape(2, 1, -1)
    sigmas = statistics.sigmas[[0, 2]].astype(float)
    found = ClipErrors(("0002",), sigmas, (4,), {name: errors})
    rows = errors_of_rows(statistics, [0, 1, 1], found)[4][name]
    np.testing.assert_allclose(rows[0], errors[0, 0])
    nearest = int(np.abs(sigmas - float(statistics.sigmas[1])).argmin())
    np.testing.assert_allclose(rows[1], errors[nearest, 0] + errors[1, 0])


def test_files_add_up_over_images_in_any_order(tmp_path, model, statistics, measured):
    other = measure(model, random_trajectory(3, steps=5), statistics, asked())
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path, one in zip(paths, (measured, other), strict=True):
        save_clip_errors(path, one)
    expected = added([measured, other])
    for order in (paths, paths[::-1]):
        found = load_clip_errors(order)
        assert set(found.images) == {"0002"}
        for name, errors in expected.errors.items():
            # Files hold float32.
            np.testing.assert_allclose(found.errors[name], errors, rtol=1e-6)


def test_images_of_other_schedules_are_a_message(tmp_path, measured):
    save_clip_errors(tmp_path / "a.safetensors", measured)
    other = ClipErrors(measured.images, measured.sigmas / 2, measured.bits, measured.errors)
    save_clip_errors(tmp_path / "b.safetensors", other)
    with pytest.raises(UserError, match="different sigmas"):
        load_clip_errors([tmp_path / "a.safetensors", tmp_path / "b.safetensors"])
