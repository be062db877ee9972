"""The baseline of each variant: rounding to nearest at the same size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .recipes import Recipe
from .variants import WEIGHTS, Variant

Recipes = Mapping[str, Recipe]

# The fields that decide the size of a checkpoint, and those of them that decide the grid.
_GRID = ("bits", "grid", "group_size")
_SIZE = (*_GRID, "others")


def baseline_recipe(recipes: Recipes, name: str) -> str | None:
    """The recipe that `name` is held against: one that rounds to nearest and is as large.

    Of the recipes with rounding `rtn`, the first in the configuration of the same size; if there is
    none, the first of the same bits, grid and group size; if there is none, the first.

    Args:
        recipes: by name, in the configuration's order.

    Returns:
        None where no other recipe is the baseline: `name` itself is, or nothing rounds to nearest.
    """
    nearest = [other for other, recipe in recipes.items() if recipe.rounding == "rtn"]
    for keys in (_SIZE, _GRID, ()):
        for other in nearest:
            if all(getattr(recipes[other], key) == getattr(recipes[name], key) for key in keys):
                return None if other == name else other
    return None


def baseline_variants(recipes: Recipes, variants: Sequence[str]) -> dict[str, str]:
    """Variant -> the variant that its error is divided by, for those that have one.

    It is the baseline recipe's variant of the same kind or, where that is not among `variants`, the
    one with quantized weights alone.
    """
    found = {}
    for variant in variants:
        parsed = Variant.parse(variant)
        if parsed.recipe is None or parsed.recipe not in recipes:
            continue
        baseline = baseline_recipe(recipes, parsed.recipe)
        against = [Variant(baseline, kind).name for kind in (parsed.kind, WEIGHTS)]
        present = [name for name in against if baseline and name in variants]
        if present:
            found[variant] = present[0]
    return found
