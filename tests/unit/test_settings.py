"""What a configuration means, and the messages for what it cannot mean."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditquant.activations.scheme import ActivationScheme, activation_schemes
from ditquant.errors import UserError
from ditquant.planning import settings, variant_names
from ditquant.planning.variants import Variant
from support.planned import complete

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config():
    """The demo's configuration, with the schema's defaults."""
    return complete()


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_shipped_configuration_is_sound(config):
    settings.check_counts(config)
    settings.check_recipes(config)
    sets = settings.prompt_sets(config, ROOT)
    assert len(sets["calibration"].prompts) >= 100
    assert len(sets["evaluation"].prompts) >= 200
    assert not set(sets["calibration"].prompts) & set(sets["evaluation"].prompts)


def test_more_images_than_prompts(config):
    config["num_images"] = 10_000
    with pytest.raises(UserError, match=r"num_images is 10000, but .* holds only"):
        settings.prompt_sets(config, ROOT)


def test_captions_of_both_files(config, tmp_path):
    shared = write(tmp_path / "p.csv", "prompt\na red star\n")
    config.update(num_images=1, prompts={"calibration": shared, "evaluation": shared})
    config["evaluation"]["captions"] = 1
    with pytest.raises(UserError, match="share 1 captions, such as 'a red star'"):
        settings.prompt_sets(config, ROOT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": {"num_images": 99, "stride": 1}}, "weights.num_images is 99"),
        ({"activations": {"stride": 51}}, "activations.stride is 51"),
        ({"activations": {"tiers": {"linear": [9.0, 3.0]}}}, "tiers.linear"),
    ],
)
def test_impossible_counts(change, message):
    with pytest.raises(UserError, match=message):
        settings.check_counts(complete(change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": "rnt"}, "unknown recipe 'rnt'; the configuration has rtn, adaround"),
        ({"evaluation": {"variants": ["svdquant-weights"]}}, "unknown recipe 'svdquant'"),
        (
            {"evaluation": {"variants": ["adaround-a7"]}},
            "unknown variant -a7 of adaround; the configuration has -weights, -native, -a8, -mul",
        ),
        ({"evaluation": {"variants": ["full-native"]}}, "-native of full; .* only have the latter"),
        ({"evaluation": {"variants": ["adaround"]}}, "Unknown variant 'adaround'"),
        ({"inference": {"variants": ["a9"]}}, r"inference\.variants: adaround-a9: unknown variant"),
    ],
)
def test_unknown_recipes_and_variants(config, change, message):
    with pytest.raises(UserError, match=message):
        settings.check_recipes({**config, **change})


def test_a_recipe_cannot_be_called_full(config):
    recipes = {**config["recipes"], "full": {"rounding": "rtn"}}
    with pytest.raises(UserError, match=r"recipes\.full"):
        settings.check_recipes({**config, "recipes": recipes})


ALL_OF_RTN = ["rtn-weights", "rtn-native", "rtn-a8", "rtn-multitier", "rtn-a6"]


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (["*-weights"], ["rtn-weights", "adaround-weights", "adaround-channel-weights"]),
        (["adaround*-a8"], ["adaround-a8", "adaround-channel-a8"]),
        (["adaround-a8", "*-a8"], ["adaround-a8", "rtn-a8", "adaround-channel-a8"]),
        (["full", "rtn-native"], ["rtn-native"]),
        (["rt[no]-weights", "rtn-weights"], ["rtn-weights"]),
        (["rtn-*"], ALL_OF_RTN),
        (["full-a6", "*-a6"], ["full-a6", "rtn-a6", "adaround-a6", "adaround-channel-a6"]),
        (["full-*"], ["full-a8", "full-multitier", "full-a6"]),
    ],
)
def test_patterns_stand_for_every_variant_that_fits(config, entries, expected):
    recipes = dict.fromkeys(("rtn", "adaround", "adaround-channel"), config["recipes"]["rtn"])
    config["activations"]["variants"] = {"a6": {"bits": 6}}
    config |= {"recipes": recipes, "recipe": "rtn", "evaluation": {"variants": entries}}
    assert variant_names.evaluated_variants(config) == ["full", "noise-floor", *expected]
    settings.check_recipes(config)


@pytest.mark.parametrize("entry", ["svd*-a8", "*-w4", "full-n*"])
def test_patterns_that_stand_for_nothing(config, entry):
    with pytest.raises(UserError, match=r"evaluation\.variants: .* no variant .* rtn-weights, "):
        settings.check_recipes({**config, "evaluation": {"variants": [entry]}})


def test_an_activation_configuration_changes_what_it_names(config):
    config["activations"] |= {
        "variants": {
            "a6": {"bits": 6, "channel_group": 64},
            "poly": {"granularity": "polynomial"},
            "cheap": {"tiers": config["activations"]["tiers"], "granularity": "group"},
        },
        "groups": 3,
        "channel_group": None,
    }
    schemes = activation_schemes(config)
    assert list(schemes) == ["a8", "multitier", "a6", "poly", "cheap"]
    assert schemes["a6"].bits == 6
    assert schemes["a6"].channel_group == 64
    assert schemes["a8"].bits == 8
    assert schemes["a8"].channel_group is None
    found = {name: one.params for name, one in schemes.items()}
    assert {name: ActivationScheme.from_params(one) for name, one in found.items()} == schemes
    # Only what is read: the groups of others do not count.
    assert "groups" not in found["a6"]["options"]
    assert found["cheap"]["options"]["groups"] == 3
    assert found["poly"]["options"]["degree"] == config["activations"]["polynomial"]["degree"]
    assert "bits" not in found["cheap"]
    assert "tiers" not in found["poly"]


@pytest.mark.parametrize("name", ["a8", "multitier", "weights", "native", "full"])
def test_names_of_activation_configurations_that_are_taken(config, name):
    config["activations"]["variants"] = {name: {"bits": 6}}
    with pytest.raises(UserError, match=rf"activations\.variants\.{name}: this name is taken"):
        settings.check_counts(config)


def test_recipe_names_may_hold_dashes():
    assert Variant.parse("best-quality-a8") == Variant("best-quality", "a8")


@pytest.mark.parametrize("name", ["full", "noise-floor", "full-a6", "best-3bit-a8", "rtn-native"])
def test_a_variant_keeps_its_name(name):
    assert Variant.parse(name).name == name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": 3}, r"activations\.variants\.own\.groups: granularity step does not read it"),
        (
            {"polynomial": {"degree": 2}, "granularity": "group"},
            r"own\.polynomial: granularity group",
        ),
        (
            {"granularity": "dynamic-token", "shift": "zero"},
            r"own\.shift: granularity dynamic-token",
        ),
        ({"clips": {"stride": 2}}, r"own\.clips: range absmax does not read it"),
        (
            {"clips": {"stride": 2}, "range": "measured", "granularity": "dynamic-tensor"},
            r"own\.clips: granularity dynamic-tensor does not read it",
        ),
    ],
)
def test_an_option_that_a_named_scheme_does_not_read_is_refused(config, change, message):
    config["activations"] |= {"granularity": "step", "variants": {"own": change}}
    with pytest.raises(UserError, match=message):
        settings.check_counts(config)


def test_planning_loads_neither_numpy_nor_mlx():
    code = (
        "import sys, ditquant.planning.settings, ditquant.plots.activation_names; "
        "print({'numpy', 'mlx', 'matplotlib'} & set(sys.modules))"
    )
    scripts = str(Path(__file__).parents[2] / "scripts")
    told = subprocess.run([sys.executable, "-c", code], cwd=scripts, text=True, capture_output=True)
    assert told.stdout.strip() == "set()", told.stderr


@given(st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=40), st.integers(1, 9))
def test_every_prompt_is_found_in_its_shard(prompts, size):
    shards = settings.PromptSet("calibration", tuple(prompts), size)
    for index, prompt in enumerate(prompts):
        assert shards.shard_prompts(shards.shard_of(index))[shards.row_of(index)] == prompt


@given(st.text(max_size=3000))
def test_ids_of_prompts_are_short_file_names(prompt):
    name = settings.own_prompt_id(prompt)
    assert 8 <= len(name) <= 49
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_appending_prompts_changes_only_the_last_shard():
    before = settings.PromptSet("calibration", tuple("abcde"), 2)
    after = settings.PromptSet("calibration", tuple("abcdefg"), 2)
    assert [after.shard_prompts(f"calibration-00{n}") for n in range(2)] == [
        before.shard_prompts(f"calibration-00{n}") for n in range(2)
    ]
