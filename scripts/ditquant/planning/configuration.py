"""Completes a configuration: defaults, types of numbers, and counts that follow from others."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from .recipe_options import keep_read_options
from .validation import check_schema

# Images of a track whose num_images is null, at most. At SD3-medium's size the weight track keeps
# 1.8 GB an image on disk and a block's job holds 0.15 GB an image in memory; measuring an image's
# activations takes as long as drawing it. More must be asked for.
MOST_IMAGES = 32
# Of tiers and clips whose `images` is null, at most: a forward pass for each input, step and try.
_TIER_IMAGES, _CLIP_IMAGES = 2, 4


def complete(config: dict[str, Any], schema: Mapping[str, Any]) -> None:
    """Checks a configuration against its schema, and fills it in, in place.

    Whole numbers become `int` and others `float`, whichever way they were written (3.0, 4): what is
    made depends on the value alone. Counts that are null follow `num_images`.

    Raises:
        UserError: what the schema does not allow, or an option of a recipe that nothing reads.
    """
    check_schema(config, schema)
    given = {name: list(options) for name, options in config.get("recipes", {}).items()}
    _filled(config, schema, schema)
    keep_read_options(config["recipes"], given)
    _set_counts(config)


def _filled(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any]) -> Any:
    """A valid value with the defaults of its keys, its numbers in the schema's types."""
    if "$ref" in schema:
        target: Any = root
        for part in schema["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        schema = {**target, **schema}
        del schema["$ref"]
        return _filled(value, schema, root)
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        for key, inner in properties.items():
            if "default" in inner:
                value.setdefault(key, copy.deepcopy(inner["default"]))
        for key in value:
            inner = properties.get(key, schema.get("additionalProperties"))
            if isinstance(inner, Mapping):
                value[key] = _filled(value[key], inner, root)
        return value
    if isinstance(value, list):
        return [_filled(item, schema.get("items", {}), root) for item in value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if "enum" in schema:
        return next(choice for choice in schema["enum"] if choice == value)
    types = schema.get("type", ())
    if "number" in types:
        return float(value)
    return int(value) if "integer" in types else value


def _set_counts(config: dict[str, Any]) -> None:
    """Puts numbers in the place of counts that are null."""
    images, weights, activations = (
        config["num_images"], config["weights"], config["activations"]
    )  # fmt: skip
    if weights["num_images"] is None:
        weights["num_images"] = min(images, MOST_IMAGES)
    if activations["num_images"] is None:
        # The other half is held out: `range: measured` tries its ranges on images behind these.
        activations["num_images"] = min((images + 1) // 2, MOST_IMAGES)
    for options in (activations, *activations["variants"].values()):
        for key, count, most in (
            ("tiers", activations["num_images"], _TIER_IMAGES),
            ("clips", images, _CLIP_IMAGES),
        ):
            if key in options and options[key].get("images") is None:
                options[key]["images"] = min(count, most)


def summary(config: Mapping[str, Any]) -> str:
    """One line for the log: how many images each track uses, of a complete configuration."""
    images = config["num_images"]
    weights, activations = (config[track]["num_images"] for track in ("weights", "activations"))
    hint = (
        ""
        if max(weights, activations) == images
        else (" (weights.num_images and activations.num_images ask for more)")
    )
    return (
        f"{images} calibration image{'s' if images > 1 else ''}: {weights} for the weight track, "
        f"{activations} for the activation track{hint}."
    )
