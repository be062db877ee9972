"""Learned activation ranges: the learned grid itself, its drift, tiers, and what cannot be."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from ditquant.activations.configs import make_config, tier_configs
from ditquant.activations.learned_ranges import (
    learned_intervals,
    load_intervals,
    reader_of,
    scaled_to_rows,
)
from ditquant.activations.quant_config import parse_quant_config
from ditquant.activations.quant_params import largest_code
from ditquant.activations.scheme import TIER_BITS
from ditquant.activations.segments import grouped
from ditquant.activations.velocity_errors import Sensitivity
from ditquant.artifacts import save_tensors
from ditquant.backend import mx, to_numpy
from ditquant.errors import UserError
from ditquant.network.blocks import shared_input
from ditquant.planning import settings
from ditquant.planning.recipes import Recipe
from ditquant.weights.lsq import ActivationQuantizer, quantize
from support.activations import statistics
from support.models import build_network
from support.planned import complete
from support.schemes import fake_quantize, multi_tier, scheme, single_tier

STEP, ZERO, BITS = float(np.float32(0.0123)), 90.0, 8
INTERVAL = (-ZERO * STEP, (255 - ZERO) * STEP)
LEARNED = {"a.q_proj": INTERVAL, "fc2": (-0.25, 3.0)}


def drifting(*widths: float, seed: int = 0) -> np.ndarray:
    """(S, 200, 8) values that reach from -0.8 to 1.2 widths at each step."""
    random = np.random.default_rng(seed)
    values = random.uniform(-0.8, 1.2, (len(widths), 200, 8))
    values[:, 0, 0], values[:, 1, 1] = -0.8, 1.2
    return (values * np.array(widths)[:, None, None]).astype(np.float32)


@pytest.fixture(scope="module")
def made():
    """Statistics of an ordinary input, one that nothing is learned of, and one behind GELU."""
    return statistics(
        {
            "a.q_proj": drifting(1, 2, 4),
            "fc1": drifting(3, 2, 1, seed=1),
            "fc2": np.maximum(drifting(1, 1, 3, seed=2), -0.17),
        },
        post_gelu=("fc2",),
    )


def layers(made, granularity="static", bits=BITS, learned=LEARNED, **options):
    chosen = dict(learned=learned, **options)
    return single_tier(made, bits, granularity, "learned", **chosen)["layers"]


# ------------------------------------------------------------------------------------- the grid


# The sums of a step of few significant bits are exact in float32, as weights' grids are; those of
# other steps are rounded once more than what was learned with.
@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("step", [0.0123, 3.7, 2.0**-7, 1201 * 2.0**-16])
def test_a_static_scale_is_the_learned_grid(made, bits, step):
    zero = float(2**bits // 3)
    quantizer = ActivationQuantizer(mx.array(step, dtype=mx.float32), zero, bits)
    exact = quantizer.step_size.item()
    intervals = learned_intervals({"a.qkv": (exact, zero)}, bits, made.input_of)
    entry = layers(made, bits=bits, learned=intervals)["a.q_proj"]
    assert np.float32(entry["scales"][0]) == np.float32(exact)
    assert np.float32(entry["shifts"][0]) == np.float32((2 ** (bits - 1) - zero) * exact)
    # Every value of the grid, those beyond its ends, and values between: none half way.
    offsets = np.array([-0.4, 0.0, 0.3])
    steps = (np.arange(-20, 2**bits + 20)[:, None] - zero + offsets).ravel()
    x = mx.array((steps * exact).astype(np.float32))
    expected = to_numpy(quantize(x, quantizer, quantizer.step_size))
    found = to_numpy(fake_quantize(x, entry["scales"][0], bits, entry["shifts"][0]))
    assert len(np.unique(np.rint(expected / exact))) == 2**bits
    np.testing.assert_array_equal(np.rint(found / exact), np.rint(expected / exact))
    is_short = exact * 2**16 == round(exact * 2**16)
    tolerance = 0.0 if is_short else 2.0**-22 * 2**bits * exact
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_other_bits_cover_the_same_interval(made, bits):
    entry = layers(made, bits=bits)["a.q_proj"]
    (scale,), (shift,) = entry["scales"], entry["shifts"]
    ends = [scale * code + shift for code in (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)]
    assert ends == pytest.approx(INTERVAL, rel=1e-5)
    assert scale == pytest.approx((INTERVAL[1] - INTERVAL[0]) / (2**bits - 1), rel=1e-6)


# ------------------------------------------------------------------------------------- rows


def test_rows_are_the_interval_times_their_measured_width(made):
    static, rows = layers(made)["a.q_proj"], layers(made, "step")["a.q_proj"]
    shares = np.array([1, 2, 4]) / 4
    np.testing.assert_allclose(rows["scales"], static["scales"][0] * shares, rtol=1e-5)
    np.testing.assert_allclose(rows["shifts"], static["shifts"][0] * shares, rtol=1e-5)


def test_groups_take_the_width_of_their_steps(made):
    document = single_tier(made, 8, "group", "learned", groups=2, learned=LEARNED)
    entry = document["layers"]["a.q_proj"]
    measured = grouped(made.of("a.q_proj"), document["groups"])
    half, shift = scaled_to_rows(measured, INTERVAL, 8)
    np.testing.assert_allclose(entry["scales"], half / largest_code(8), rtol=1e-6)
    np.testing.assert_allclose(entry["shifts"], shift, rtol=1e-6)
    # The group of the widest step has the learned interval itself.
    assert max(entry["scales"]) == pytest.approx(STEP, rel=1e-6)
    assert len(entry["scales"]) == 2


def test_an_input_that_never_moves_keeps_the_interval():
    made = statistics({"a.q_proj": np.zeros((2, 4, 3), np.float32)})
    assert layers(made, "step")["a.q_proj"]["scales"] == pytest.approx([STEP] * 2, rel=1e-6)


# ------------------------------------------------------------------------------------- fallback


@pytest.mark.parametrize("granularity", ["static", "step", "group"])
@pytest.mark.parametrize("shift", ["middle", "error"])
def test_what_was_not_learned_takes_absmax(made, granularity, shift):
    partly = {"a.q_proj": INTERVAL}
    # Groups are found from all ranges: those of learned intervals drift as what was measured does.
    found = layers(made, granularity, learned=partly, shift=shift, groups=3)
    plain = single_tier(made, 8, granularity, "absmax", groups=3, shift=shift)
    assert found["fc1"] == plain["layers"]["fc1"]
    assert found["fc2"] == plain["layers"]["fc2"]
    assert found["a.q_proj"]["learned"] is True
    assert "shift_rules" not in layers(made, granularity, shift=shift)["fc2"]
    nothing = single_tier(made, 8, granularity, "learned", groups=3, shift=shift)
    assert nothing["layers"] == plain["layers"]
    assert nothing["configuration"]["range"] == "learned"


def unused():
    raise AssertionError("nothing weighs errors")


def test_only_the_range_learned_takes_what_was_learned(made):
    taken = make_config(made, scheme(rule="learned"), unused, unused, LEARNED)
    assert [layer.get("learned") for layer in taken["layers"].values()] == [True, None, True]
    other = make_config(made, scheme(), unused, unused, LEARNED)
    assert other == make_config(made, scheme(), unused, unused)


# ------------------------------------------------------------------------------------- tiers


def test_tiers_cover_the_learned_interval_with_their_bits(made):
    limits = {"linear": [0.5, 1.0], "post_gelu": [0.1, 9.0]}
    document = multi_tier(made, "step", "learned", limits, learned=LEARNED)
    entry = document["layers"]["a.q_proj"]
    assert entry["bits"] == [4, 6, 8]
    singles = [layers(made, "step", bits)["a.q_proj"] for bits in TIER_BITS]
    assert entry["scales"] == [one["scales"][row] for row, one in enumerate(singles)]
    assert entry["shifts"] == [one["shifts"][row] for row, one in enumerate(singles)]
    assert document["layers"]["fc2"]["learned"] is True


@pytest.mark.parametrize("weighting", ["relative", "velocity", "latents"])
def test_tiers_by_sensitivity_know_learned_ranges(made, weighting):
    tiers = {"mode": "sensitivity", "average_bits": 6.0, "weighting": weighting}
    errors = {name: np.tile([3.0, 2.0, 1.0], (3, 1)) for name in made.inputs}
    gains = {float(made.sigmas[0]): 9.0} if weighting == "latents" else {}
    measured = Sensitivity(np.array(made.sigmas, np.float64), errors, gains)
    chosen = scheme(rule="learned", tiers=tiers)
    document = make_config(made, chosen, unused, lambda: measured, LEARNED)
    parse_quant_config(document, "document")
    for row, bits in enumerate(document["layers"]["a.q_proj"]["bits"]):
        single = layers(made, "step", bits)["a.q_proj"]
        assert document["layers"]["a.q_proj"]["scales"][row] == single["scales"][row]
    alone = tier_configs(made, chosen, LEARNED)
    assert list(alone) == list(TIER_BITS)
    assert list(alone[8].layers["a.q_proj"].scales) == layers(made, "step")["a.q_proj"]["scales"]


# ------------------------------------------------------------------------------------- files


def test_names_are_those_of_the_learning():
    linears = build_network().linears
    names = {linear.name for linear in linears}
    for linear in linears:
        reader = reader_of(shared_input(linear))
        assert reader in names
        assert shared_input(linear) == shared_input(next(x for x in linears if x.name == reader))


def block_file(path, activations, kind="ditquant.block_weights"):
    save_tensors(path, {"x": mx.zeros(1)}, kind, {"activations": activations})
    return str(path)


def test_intervals_of_all_blocks(tmp_path):
    input_of = {"mm00.q_proj": "mm00.q_proj", "mm00.v_proj": "mm00.q_proj", "mm01.fc1": "mm01.fc1"}
    files = [
        block_file(tmp_path / "0.safetensors", {"mm00.qkv": (0.5, 3.0)}),
        block_file(tmp_path / "1.safetensors", {}),
    ]
    assert load_intervals(files, 4, input_of) == {"mm00.q_proj": (-1.5, 6.0)}
    assert load_intervals([], 0, input_of) == {}
    files.append(block_file(tmp_path / "2.safetensors", {"mm77.fc1": (0.5, 3.0)}))
    with pytest.raises(UserError, match=r"mm77\.fc1 has a learned range, but its activations"):
        load_intervals(files, 4, input_of)
    other = block_file(tmp_path / "3.safetensors", {}, kind="ditquant.activation_statistics")
    with pytest.raises(UserError, match=r"3\.safetensors holds ditquant\.activation_stat"):
        load_intervals([other], 4, input_of)


# ------------------------------------------------------------------------------------- settings


@pytest.fixture(scope="module")
def sound():
    """The demo's configuration with a range that is learned."""
    changes = {"granularity": "group", "channel_group": None, "range": "learned"}
    loaded = complete({"activations": changes})
    settings.check_counts(loaded)
    return loaded


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"granularity": "polynomial"}, "granularity polynomial"),
        ({"granularity": "dynamic-token"}, "granularity dynamic-token"),
        ({"channel_group": 64}, "channel_group 64"),
        ({"channel_shift": True}, "channel_shift true"),
    ],
)
def test_what_learned_ranges_do_not_go_with(sound, change, named):
    for key in ("activations", "activations.variants.mine"):
        config = copy.deepcopy(sound)
        is_own = key.endswith("mine")
        (config["activations"]["variants"].setdefault("mine", {}) if is_own else
         config["activations"]).update(change)  # fmt: skip
        with pytest.raises(UserError, match=rf"{key}: range learned does not go with {named} \("):
            settings.check_counts(config)


def test_a_variant_may_be_learned_alone(sound):
    config = copy.deepcopy(sound)
    config["activations"] |= {"range": "absmax", "granularity": "dynamic-token"}
    config["activations"]["variants"] = {"fits": {"range": "learned", "granularity": "step"}}
    settings.check_counts(config)
    config["activations"]["variants"] = {"inherits": {"range": "learned"}}
    with pytest.raises(UserError, match=r"variants\.inherits: range learned .* dynamic-token"):
        settings.check_counts(config)


def test_recipes_that_learn_ranges_have_activations_of_their_own(sound):
    recipes = {name: Recipe.from_params(one) for name, one in sound["recipes"].items()}
    own = {name for name, recipe in recipes.items() if recipe.has_own_activations}
    assert own == {"awq", "taqdit"}
    assert [recipes[name].learns_ranges for name in ("awq", "taqdit")] == [False, True]
