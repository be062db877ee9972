"""What can be drawn: recipes' weights, activation schemes, and the variants of both.

A variant is `full`, or what the weights are and what is done with the activations, joined by a
hyphen: "adaround-weights", "best-native", "adaround-a8", "full-a6". The workflow reads this module
while it plans, so it imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from ..activations.scheme import activation_schemes
from ..errors import UserError

# What a variant does with a recipe's weights where it quantizes no activations.
WEIGHTS, NATIVE = "weights", "native"
WEIGHT_KINDS = (WEIGHTS, NATIVE)
# Nothing is quantized; in the place of a recipe's name: nothing is done to the weights.
FULL = "full"
# The full-precision model at another storage precision.
NOISE_FLOOR = "noise-floor"


@dataclass(frozen=True)
class Variant:
    """Weights, and what is done with activations.

    Attributes:
        recipe: whose weights; None: those of the full-precision model.
        kind: "weights" or "native" (weights stay packed), or the name of an activation scheme;
            of variants without a hyphen the whole name.
    """

    recipe: str | None
    kind: str

    @classmethod
    def parse(cls, name: str) -> Variant:
        """The variant of this name.

        Raises:
            UserError: nothing stands before or after the last hyphen.
        """
        if name in (FULL, NOISE_FLOOR):
            return cls(None, name)
        recipe, _, kind = name.rpartition("-")
        if not recipe or not kind:
            raise UserError(
                f"Unknown variant {name!r}: a variant is full, or a recipe's name followed by "
                f"-weights, -native or the name of an activation configuration such as -a8."
            )
        return cls(None if recipe == FULL else recipe, kind)

    @property
    def name(self) -> str:
        """As rules and files name it: "adaround-a8"."""
        if self.kind in (FULL, NOISE_FLOOR):
            return self.kind
        return f"{self.recipe or FULL}-{self.kind}"

    @property
    def scheme(self) -> str | None:
        """The name of the activation scheme; None: activations are left alone."""
        return None if self.kind in (*WEIGHT_KINDS, FULL, NOISE_FLOOR) else self.kind

    @property
    def is_packed(self) -> bool:
        """Whether weights are unpacked while the model runs."""
        return self.kind == NATIVE


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
