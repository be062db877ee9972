"""What can be drawn: recipes' weights, activation configurations, and the variants of both.

A variant is `full`, or what the weights are and what is done with the activations, joined by a
hyphen: "adaround-weights", "best-native", "adaround-a8", "full-a6". The workflow asks this module
while it plans, so it imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from ..errors import UserError

# What a variant does with a recipe's weights where it quantizes no activations.
WEIGHT_KINDS = ("weights", "native")
# In the place of a recipe's name: nothing is done to the weights.
FULL = "full"


def activation_configs(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The activation configurations, each with the options that it reads.

    `a8` has the bits of `activations`, `multitier` its tiers; each entry of `activations.variants`
    changes some of their options under a name of its own. Options that do not count (the tiers of a
    configuration of one tier, the polynomial of a static one) are left out, so that changing them
    redoes nothing.

    Returns:
        Name -> granularity, range, `bits` or `tiers`, and `options` as `single_tier.ScaleOptions`
        has them; `clips` where shorter ranges are tried.
    """
    common = config["activations"]
    asked = {
        "a8": {"bits": common["bits"]},
        "multitier": {"tiers": common["tiers"]},
        **common["variants"],
    }
    return {name: _activation_config({**common, **own}, own) for name, own in asked.items()}


def _activation_config(chosen: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    granularity = chosen["granularity"]
    options = {key: chosen[key] for key in ("shift", "channel_group", "channel_shift")}
    if granularity == "group":
        options["groups"] = chosen["groups"]
    if granularity == "polynomial":
        options |= chosen["polynomial"]
    kind = "tiers" if "tiers" in own else "bits"
    tried = {"clips": chosen["clips"]} if tries_clips(granularity, chosen["range"]) else {}
    return {
        "granularity": granularity,
        "range": chosen["range"],
        kind: chosen[kind],
        "options": options,
        **tried,
    }


def tries_clips(granularity: str, rule: str) -> bool:
    """Whether ranges are chosen by what the rule measure_clips finds; those of run time are not."""
    return rule == "measured" and not granularity.startswith("dynamic")


def measures_tiers(tiers: Mapping[str, Any]) -> bool:
    """Whether tiers are chosen by what measure_sensitivity finds: passes of single inputs."""
    return tiers["mode"] == "sensitivity" and tiers["weighting"] in ("latents", "velocity")


def config_file(name: str) -> str:
    """The file of an activation configuration, below `activations/`."""
    return "quant_config.json" if name == "a8" else f"quant_config_{name}.json"


def split_variant(variant: str) -> tuple[str | None, str]:
    """("adaround", "a8") of "adaround-a8"; (None, "full") of "full".

    Raises:
        UserError: nothing stands before or after the last hyphen.
    """
    if variant == "full":
        return None, "full"
    recipe, _, kind = variant.rpartition("-")
    if not recipe or not kind:
        raise UserError(
            f"Unknown variant {variant!r}: a variant is full, or a recipe's name followed by "
            f"-weights, -native or the name of an activation configuration such as -a8."
        )
    return recipe, kind


def variant_names(config: Mapping[str, Any]) -> list[str]:
    """Every variant of a configuration, recipe by recipe; activations alone come last."""
    quantized = list(activation_configs(config))
    return [
        "full",
        *(f"{recipe}-{kind}" for recipe in config["recipes"] for kind in WEIGHT_KINDS),
        *(f"{recipe}-{kind}" for recipe in config["recipes"] for kind in quantized),
        *(f"{FULL}-{kind}" for kind in quantized),
    ]


def check_variant(variant: str, config: Mapping[str, Any], key: str = "") -> None:
    """Checks that a variant is one of the configuration's.

    Raises:
        UserError: it is not; the message names the recipes and kinds that there are.
    """
    if variant in variant_names(config):
        return
    recipe, kind = split_variant(variant)
    recipes = [*config["recipes"], FULL]
    kinds = [*WEIGHT_KINDS, *activation_configs(config)]
    start = f"{key}: " if key else ""
    if recipe not in recipes:
        raise UserError(
            f"{start}{variant}: unknown recipe {recipe!r}; the configuration has "
            f"{', '.join(recipes)}."
        )
    raise UserError(
        f"{start}{variant}: unknown variant -{kind} of {recipe}; the configuration has "
        f"{', '.join('-' + kind for kind in kinds)}"
        + (", and weights that are not quantized only have the latter." if recipe == FULL else ".")
    )


def _variants_named(entry: str, config: Mapping[str, Any]) -> list[str]:
    """The variants that one entry of `evaluation.variants` stands for."""
    key = "evaluation.variants"
    if not any(character in entry for character in "*?["):
        check_variant(entry, config, key)
        return [entry]
    names = variant_names(config)
    found = [
        name
        for name in names
        # `*` stands for recipes and kinds; what is not quantized at all must be asked for.
        if fnmatchcase(name, entry) and (entry.startswith(FULL) or split_variant(name)[0] != FULL)
    ]
    if not found:
        raise UserError(
            f"{key}: {entry}: no variant is named like this; the configuration has "
            f"{', '.join(names)}."
        )
    return found


def evaluated_variants(config: Mapping[str, Any]) -> list[str]:
    """The rows of the evaluation's table: `full`, the noise floor, then those of the configuration.

    An entry of `evaluation.variants` may be a pattern: "*-weights" is every recipe of the
    configuration in its order, "adaround*-a8" those whose names begin so, "best-*" everything that
    is done with best. A variant that several entries name is there once.

    Raises:
        UserError: an unknown recipe or kind, or a pattern that nothing matches.
    """
    named = [_variants_named(entry, config) for entry in config["evaluation"]["variants"]]
    return list(
        dict.fromkeys(["full", "noise-floor", *(name for names in named for name in names)])
    )
