"""The variants that a configuration has: its recipes' weights, its activation schemes, and both.

The workflow reads this module while it plans, so it imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from ..activations.scheme import activation_schemes
from ..errors import UserError
from .variants import FULL, NOISE_FLOOR, WEIGHT_KINDS, Variant


def variant_names(config: Mapping[str, Any]) -> list[str]:
    """Every variant of a configuration, recipe by recipe; activations alone come last."""
    schemes, recipes = list(activation_schemes(config)), config["recipes"]
    return [
        FULL,
        *(Variant(recipe, kind).name for recipe in recipes for kind in WEIGHT_KINDS),
        *(Variant(recipe, kind).name for recipe in recipes for kind in schemes),
        *(Variant(None, kind).name for kind in schemes),
    ]


def check_variant(name: str, config: Mapping[str, Any], key: str = "") -> None:
    """Checks that a variant is one of the configuration's.

    Raises:
        UserError: it is not; the message names the recipes and kinds that there are.
    """
    if name in variant_names(config):
        return
    variant = Variant.parse(name)
    recipe = variant.recipe or FULL
    recipes = [*config["recipes"], FULL]
    kinds = [*WEIGHT_KINDS, *activation_schemes(config)]
    start = f"{key}: " if key else ""
    if recipe not in recipes:
        raise UserError(
            f"{start}{name}: unknown recipe {recipe!r}; the configuration has {', '.join(recipes)}."
        )
    raise UserError(
        f"{start}{name}: unknown variant -{variant.kind} of {recipe}; the configuration has "
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
        # `*` stands for recipes and kinds; full-precision weights must be asked for.
        if fnmatchcase(name, entry)
        and (entry.startswith(FULL) or name == FULL or Variant.parse(name).recipe)
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
    return list(dict.fromkeys([FULL, NOISE_FLOOR, *(name for names in named for name in names)]))
