"""Every recipe is held against rounding to nearest of its own size."""

from __future__ import annotations

from ditquant.planning.baselines import baseline_recipe, baseline_variants
from support.problems import whole_recipe as recipe

RECIPES = {
    "learned": recipe("adaround"),
    "rtn": recipe("rtn"),
    "balanced": recipe("rtn", balance="csb"),
    "rtn-channel": recipe("rtn", grid="channel"),
    "learned-channel": recipe("taqdit", grid="channel"),
    "learned-3bit": recipe("adaround", bits=3),
    "rtn-all": recipe("rtn", quantize="all"),
    "learned-all": recipe("adaround", quantize="all"),
    "learned-adaln": recipe("adaround", quantize="blocks+adaln"),
}


def test_the_first_of_the_same_size_then_of_the_same_grid_then_the_first():
    assert {name: baseline_recipe(RECIPES, name) for name in RECIPES} == {
        "learned": "rtn",
        "rtn": None,
        "balanced": "rtn",
        "rtn-channel": None,
        "learned-channel": "rtn-channel",
        "learned-3bit": "rtn",
        "rtn-all": None,
        "learned-all": "rtn-all",
        "learned-adaln": "rtn",
    }


def test_without_rounding_to_nearest_there_is_no_baseline():
    assert baseline_recipe({"learned": recipe("adaround")}, "learned") is None


def test_variants_are_held_against_their_own_kind_or_against_weights():
    variants = ["full", "noise-floor", "rtn-weights", "learned-weights", "learned-a8", "rtn-native"]
    assert baseline_variants(RECIPES, [*variants, "learned-native"]) == {
        "learned-weights": "rtn-weights",
        "learned-a8": "rtn-weights",
        "learned-native": "rtn-native",
    }


def test_a_baseline_that_is_not_evaluated_is_none():
    assert baseline_variants(RECIPES, ["full", "learned-weights", "rtn-a8"]) == {}
