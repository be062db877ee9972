"""What the Snakefile makes of a configuration, in process."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from snakemake.cli import parse_config
from snakemake.common.configfile import load_configfile
from snakemake.utils import update_config

from ditquant.models.plan import Plan, read_plan
from ditquant.planning import configuration
from ditquant.planning.command_line import take_typed_text
from ditquant.planning.config_files import check_file

ROOT = Path(__file__).parents[2]
CONFIGURATION = ROOT / "config" / "config.yaml"


@cache
def schema() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "config" / "schema.yaml").read_text("utf-8"))


@cache
def _demo() -> dict[str, Any]:
    return load_configfile(CONFIGURATION)


def complete(changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The demo's configuration with changes laid over it, checked and filled in."""
    config = copy.deepcopy(_demo())
    update_config(config, copy.deepcopy(changes or {}))
    configuration.complete(config, schema())
    return config


def plan(path: Path | None = None, typed: tuple[str, ...] = ()) -> tuple[dict[str, Any], Plan]:
    """What rules/arguments.smk and rules/common.smk make of a configuration file and `--config`.

    Returns:
        The complete configuration, and what follows from it.
    """
    config = copy.deepcopy(_demo())
    if path is not None:
        check_file(path)
        update_config(config, load_configfile(path))
    update_config(config, parse_config(typed))
    take_typed_text(config, list(typed), is_spawned=False)
    return config, read_plan(config, schema(), ROOT)
