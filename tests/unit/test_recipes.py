"""Recipes: what each rounding reads, and what is told of options that nothing reads."""

from __future__ import annotations

import dataclasses
import re

import pytest

from ditquant.errors import UserError
from ditquant.planning.recipes import ROUNDINGS, Recipe
from ditquant.weights import roundings
from support.planned import complete, schema
from support.problems import full_recipe, tuned_recipe, whole_recipe

OPTIONS = schema()["$defs"]["recipe"]["properties"]
# A value that is not the default, of each option.
OTHER = {
    "grid": "channel", "group_size": 32, "bits": 3, "quantize": "all", "other_bits": 6,
    "iterations": 7, "batch_size": 3, "learning_rate": 0.5, "regularizer": 9.0, "warmup": 0.5,
    "rows_at_once": 2, "step_weights": "early", "start": "gptq", "clip": True, "inputs": "mixed",
    "damping": 0.5, "balance": "smoothquant", "rotation": 64, "activation_bits": 6,
    "activation_learning_rate": 0.5, "drop": 0.25, "layers": {"*.fc1": 8}, "holdout": 0.5,
    "tune_iterations": 5, "tune_batch_size": 3, "tune_rows_at_once": 1, "tune_learning_rate": 0.5,
    "tune_stride": 3,
}  # fmt: skip
NEEDS = {
    "damping": {"start": "gptq"}, "activation_bits": {"balance": "csb"},
    **{key: {"tune_iterations": 5} for key in OTHER if key.startswith("tune_")},
}  # fmt: skip


def read(**options):
    """The options of a recipe of the configuration, once it is complete."""
    return complete({"recipes": {"mine": options}})["recipes"]["mine"]


def test_every_rounding_of_the_schema_has_a_dataclass_and_a_function():
    assert set(OPTIONS["rounding"]["enum"]) == set(ROUNDINGS) == set(roundings.ROUNDINGS)
    named = {name for kind in ROUNDINGS.values() for name in kind.option_names()}
    assert named == set(OPTIONS)
    assert set(OTHER) == named - {"rounding"}


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("option", OTHER)
def test_an_option_is_read_or_told(rounding, option):
    """What is given counts, or is an error that names the key and who reads it."""
    kind = ROUNDINGS[rounding]
    needs = {key: one for key, one in NEEDS.get(option, {}).items() if key in kind.option_names()}
    given = {"rounding": rounding, option: OTHER[option], **needs}
    if option in kind.option_names():
        assert read(**given)[option] == OTHER[option]
        return
    with pytest.raises(UserError) as told:
        read(**given)
    readers = [name for name, other in ROUNDINGS.items() if option in other.option_names()]
    line = f"recipes.mine.{option}: {rounding} does not read it; {' and '.join(readers)} do"
    assert line in str(told.value)


@pytest.mark.parametrize("value", [True, False])
def test_a_default_that_nothing_reads_is_told_too(value):
    with pytest.raises(UserError) as told:
        read(rounding="gptq", clip=value, iterations=9999)
    lines = str(told.value).splitlines()[1:]
    assert lines == [
        "  recipes.mine.clip: gptq does not read it; adaround does.",
        "  recipes.mine.iterations: gptq does not read it; adaround and taqdit do.",
    ]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            {"rounding": "adaround", "damping": 0.2},
            "damping: adaround reads it only with start",
        ),
        ({"rounding": "taqdit", "damping": 0.2}, "damping: taqdit reads it only with start: gptq."),
        (
            {"rounding": "awq", "activation_bits": 6},
            "activation_bits: awq reads it only with balance: smoothquant or csb.",
        ),
        ({"rounding": "gptq", "balance": "awq", "activation_bits": 6}, "activation_bits: gptq re"),
        (
            {"rounding": "rtn", "tune_iterations": 0, "tune_stride": 2},
            "tune_stride: rtn reads it only with tune_iterations above 0.",
        ),
    ],
)
def test_an_option_that_is_read_only_with_another_is_told(given, line):
    with pytest.raises(UserError, match=re.escape(f"recipes.mine.{line}")):
        read(**given)


def test_an_option_of_a_recipe_that_is_laid_over_one_of_the_demo_counts():
    """`adaround` of the demo has iterations, which gptq does not read."""
    with pytest.raises(UserError, match="take another name") as told:
        complete({"recipes": {"adaround": {"rounding": "gptq"}}})
    assert "recipes.adaround.iterations: gptq does not read it" in str(told.value)


def test_only_what_is_read_is_kept():
    assert read(rounding="rtn") == {
        "rounding": "rtn", "grid": "group", "group_size": 64, "bits": 4, "layers": {},
        "balance": "none", "holdout": 0.2, "quantize": "blocks", "other_bits": 8,
    }  # fmt: skip
    assert read(rounding="gptq")["damping"] == 0.1
    assert "damping" not in read(rounding="adaround")
    assert read(rounding="adaround", start="gptq")["damping"] == 0.1
    assert read(rounding="taqdit")["activation_bits"] == 8
    assert "rotation" not in read(rounding="taqdit", rotation=None)
    assert not any(key.startswith("tune_") for key in read(rounding="rtn", tune_iterations=0))
    tuned = read(rounding="rtn", tune_iterations=9)
    assert (tuned["tune_iterations"], tuned["tune_rows_at_once"]) == (9, 2)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_a_complete_configuration_is_a_configuration(rounding):
    """As a report shows it, for example."""
    for some in ({}, {"tune_iterations": 5}):
        once = read(rounding=rounding, **some)
        assert read(**once) == once


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("some", [{}, OTHER, {**OTHER, "rotation": None, "rows_at_once": None}])
def test_a_recipe_is_rebuilt_from_its_parameters(rounding, some):
    for recipe in (whole_recipe(rounding, **some), full_recipe(rounding, **some)):
        assert Recipe.from_params(recipe.params()) == recipe
        assert type(recipe) is ROUNDINGS[rounding]
        with pytest.raises(dataclasses.FrozenInstanceError):
            recipe.bits = 8


def test_blocks_depend_on_nothing_that_is_done_behind_them():
    tuned = tuned_recipe("adaround", tune_iterations=9, quantize="all")
    assert tuned.tuning.iterations == 9
    assert tuned.others.quantize == "all"
    assert tuned.of_block() == tuned_recipe("adaround").of_block()
    assert not {"quantize", "other_bits", "tune_iterations"} & set(tuned.of_block().params())


def test_parameters_that_no_such_recipe_has_are_refused():
    with pytest.raises(UserError, match="A recipe has clip, which gptq does not read"):
        Recipe.from_params({**whole_recipe("gptq").params(), "clip": True})


def test_the_last_pattern_that_fits_counts():
    layers = {"*.fc1": 8, "mm01.*": 3, "*.txt.*": "full", "mm00.txt.*.fc2": 6}
    recipe = full_recipe("rtn", layers=layers)
    assert recipe.grid_of("mm00.img.mlp.fc1").bits == 8
    assert recipe.grid_of("mm01.img.mlp.fc1").bits == 3
    assert recipe.grid_of("mm01.txt.mlp.fc1") is None
    assert recipe.grid_of("mm00.txt.mlp.fc2").bits == 6
    assert recipe.grid_of("mm00.img.attn.q_proj").bits == 4


@pytest.mark.parametrize(
    ("rounding", "options", "kind", "own"),
    [
        ("rtn", {}, "none", False),
        ("adaround", {"balance": "csb"}, "csb", True),
        ("awq", {}, "awq", True),
        ("awq", {"balance": "csb"}, "csb", True),
        ("gptq", {"rotation": 64}, "none", True),
        ("taqdit", {}, "none", True),
    ],
)
def test_recipes_that_change_what_linears_read_have_activations_of_their_own(
    rounding, options, kind, own
):
    recipe = whole_recipe(rounding, **options)
    assert (recipe.balance_kind, recipe.has_own_activations) == (kind, own)
    assert recipe.learns_ranges == (rounding == "taqdit")


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_blocks_are_chained_where_they_read_quantized_streams(rounding):
    for inputs in ("full", "quantized", "mixed"):
        is_chained = "inputs" in ROUNDINGS[rounding].option_names() and inputs != "full"
        assert full_recipe(rounding, inputs=inputs).is_chained == is_chained
