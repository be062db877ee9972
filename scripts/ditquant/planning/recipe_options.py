"""From the options of a configuration's `recipes` to those that each recipe reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import UserError
from .recipes import ROUNDINGS


def _why_unread(key: str, options: Mapping[str, Any]) -> str | None:
    """Why nothing reads an option that is set, or None if something does."""
    rounding = options["rounding"]
    kind = ROUNDINGS[rounding]
    if key not in kind.option_names():
        readers = [name for name, other in ROUNDINGS.items() if key in other.option_names()]
        verb = "does" if len(readers) == 1 else "do"
        return f"{rounding} does not read it; {' and '.join(readers)} {verb}."
    condition = kind.conditions.get(key)
    if condition is None or condition.holds(options) or key == condition.option:
        return None
    return f"{rounding} reads it only with {condition}."


def keep_read_options(
    recipes: dict[str, dict[str, Any]], given: Mapping[str, Iterable[str]]
) -> None:
    """Leaves in each recipe the options that it reads, in place.

    Args:
        recipes: name -> all options, those that were not given by the schema's defaults.
        given: name -> the options that were given.

    Raises:
        UserError: naming every option that was given and that nothing reads.
    """
    lines = [
        f"recipes.{name}.{key}: {why}"
        for name, options in recipes.items()
        for key in given.get(name, ())
        if (why := _why_unread(key, options))
    ]
    if lines:
        raise UserError(
            "Recipes have options that nothing reads. Leave them out; where a recipe of the same "
            "name in config/config.yaml has them, take another name.\n  " + "\n  ".join(lines)
        )
    for name, options in recipes.items():
        recipes[name] = ROUNDINGS[options["rounding"]].read_of(options)
