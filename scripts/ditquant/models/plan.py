"""What a configuration asks of a model, checked before anything is planned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UserError
from ..planning import configuration, settings
from .files import check_local_files
from .spec import ModelSpec, check_t5, drawn_size, read_spec


class Plan(NamedTuple):
    """What follows from a configuration.

    Attributes:
        spec: of the model.
        image_size: height and width in pixels.
        prompts: all sets, by name.
        inference_prompts: prompt id -> (set, index in the set).
    """

    spec: ModelSpec
    image_size: list[int]
    prompts: dict[str, settings.PromptSet]
    inference_prompts: dict[str, tuple[str, int]]


def read_plan(config: dict[str, Any], schema: Mapping[str, Any], root: Path) -> Plan:
    """Checks a configuration and fills it in, in place; then reads what it names.

    Args:
        schema: of the configuration (config/schema.yaml).
        root: folder of the Snakefile.

    Raises:
        UserError: whatever a user can get wrong that needs no weight to be read.
    """
    configuration.complete(config, schema)
    settings.check_counts(config)
    settings.check_recipes(config)
    try:
        spec = read_spec(config["model"]["name"], config["model"]["checkpoint"])
        check_local_files(spec)
        prompts = settings.prompt_sets(config, root)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}.") from None
    image_size = drawn_size(spec, config["calibration"]["image_size"])
    check_t5(spec, config["text"]["t5"])
    return Plan(spec, image_size, prompts, settings.inference_prompts(config))
