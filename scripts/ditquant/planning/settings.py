"""What follows from a configuration: prompts and their ids, recipes, counts.

The workflow asks this module while it plans, so it imports nothing heavy. All checks that a schema
cannot express are here, each with a message that names the key.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..activations.scheme import MULTI_TIER, SINGLE_TIER, check_schemes
from ..errors import UserError
from .prompt_files import read_prompts
from .recipes import Recipe
from .variant_names import check_variant, evaluated_variants
from .variants import FULL, WEIGHT_KINDS

_MOST_SHARDS = 1000  # of a set; names of shards have three digits


@dataclass(frozen=True)
class PromptSet:
    """A list of prompts that is encoded in shards of fixed size.

    Attributes:
        name: "calibration", "evaluation", "inference" or "own".
        prompts: in order; appending some changes no earlier shard but the last.
        shard_size: prompts a shard.
    """

    name: str
    prompts: tuple[str, ...]
    shard_size: int

    def shard_of(self, index: int) -> str:
        """Name of the shard that holds prompt `index`: "calibration-000"."""
        return f"{self.name}-{index // self.shard_size:03d}"

    def row_of(self, index: int) -> int:
        """Row of prompt `index` inside its shard."""
        return index % self.shard_size

    def shard_prompts(self, shard: str) -> list[str]:
        start = int(shard.rsplit("-", 1)[1]) * self.shard_size
        return list(self.prompts[start : start + self.shard_size])


def _prompts_of(config: Mapping[str, Any], name: str, root: Path) -> list[str]:
    path = Path(os.path.expanduser(config["prompts"][name]))
    return read_prompts(path if path.exists() else root / path, f"prompts.{name}")


def short_digest(*parts: Any) -> str:
    """Eight hexadecimal digits that stand for anything JSON can hold."""
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:8]


def own_prompt_id(prompt: str) -> str:
    """A file name for a prompt of one's own: its first words and a hash of the whole."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].strip("-")
    digest = hashlib.sha256(prompt.encode("utf-8")).hexdigest()[:8]
    return f"{words}-{digest}" if words else digest


def prompt_sets(config: Mapping[str, Any], root: Path) -> dict[str, PromptSet]:
    """All prompts of a validated configuration, by set.

    Args:
        root: folder of the Snakefile; a prompt file that is not found from where the user stands
            is looked for there.

    Raises:
        UserError: an empty or missing file, an empty prompt, more images than prompts, or a caption
            that both the calibration and the evaluation hold.
    """
    size = config["text"]["shard_size"]
    sets = {
        name: PromptSet(name, tuple(_prompts_of(config, name, root)), size)
        for name in ("calibration", "evaluation")
    }
    wanted = {
        "num_images": (config["num_images"], "calibration"),
        "evaluation.captions": (config["evaluation"]["captions"], "evaluation"),
    }
    for key, (count, name) in wanted.items():
        available = len(sets[name].prompts)
        if count > available:
            raise UserError(
                f"{key} is {count}, but {config['prompts'][name]} holds only {available} prompts. "
                f"Lower {key} or add prompts to the file."
            )
    shared = set(sets["calibration"].prompts) & set(sets["evaluation"].prompts)
    if shared:
        raise UserError(
            f"prompts.calibration and prompts.evaluation share {len(shared)} captions, such as "
            f"{min(shared)!r}: a caption may be in only one of them."
        )
    sets["inference"] = PromptSet("inference", tuple(config["inference"]["prompts"]), size)
    if config["prompt"] is not None:
        sets["own"] = PromptSet("own", (config["prompt"],), size)
    used = {
        **{name: count for count, name in wanted.values()},
        "inference": len(sets["inference"].prompts),
    }
    for name, count in used.items():
        if count > _MOST_SHARDS * size:
            raise UserError(
                f"text.shard_size is {size}: {count} {name} prompts would take more than "
                f"{_MOST_SHARDS:,} shards, whose names have three digits. Set it to "
                f"{-(-count // _MOST_SHARDS)} or more."
            )
    for name in ("inference", "own"):
        if name in sets and not all(prompt.strip() for prompt in sets[name].prompts):
            key = "prompt" if name == "own" else "inference.prompts"
            raise UserError(f"{key}: a prompt is empty.")
    return sets


def inference_prompts(config: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    """Prompt id -> (set, index in the set): p00, p01, ... and the id of a prompt of one's own."""
    ids = {
        f"p{index:02d}": ("inference", index)
        for index in range(len(config["inference"]["prompts"]))
    }
    if config["prompt"] is not None:
        ids[own_prompt_id(config["prompt"])] = ("own", 0)
    return ids


def check_counts(config: Mapping[str, Any]) -> None:
    """Relations between numbers that the schema cannot express.

    Raises:
        UserError: a track, tiers or clips that want more images than there are, a stride beyond the
            steps, or activation options that exclude each other.
    """
    for track in ("weights", "activations"):
        wanted = config[track]["num_images"]
        if wanted > config["num_images"]:
            raise UserError(
                f"{track}.num_images is {wanted}, but num_images is {config['num_images']}: "
                "a track uses calibration images, so it cannot have more."
            )
        stride = config[track]["stride"]
        if stride > config["num_steps"]:
            raise UserError(
                f"{track}.stride is {stride}, larger than num_steps = {config['num_steps']}."
            )
    for name in config["activations"]["variants"]:
        if name in (*WEIGHT_KINDS, SINGLE_TIER, MULTI_TIER, FULL):
            raise UserError(f"activations.variants.{name}: this name is taken; choose another.")
        if name == "floor" and "noise" in config["recipes"]:
            raise UserError(
                "recipes.noise: with activations.variants.floor there would be a variant "
                "noise-floor, as the evaluation calls full precision from other noise: rename one."
            )
    check_schemes(config)


def check_recipes(config: Mapping[str, Any]) -> None:
    """Checks that every recipe that is named exists.

    Raises:
        UserError: unknown recipe or variant, or options that do not go together.
    """
    names = list(config["recipes"])
    if config["recipe"] not in names:
        raise UserError(
            f"recipe: unknown recipe {config['recipe']!r}; the configuration has "
            f"{', '.join(names)}."
        )
    if FULL in names:
        raise UserError(f"recipes.{FULL}: this name stands for weights that are not quantized.")
    for name, options in config["recipes"].items():
        recipe = Recipe.from_params(options)
        if recipe.rotation and recipe.balance_kind != "none":
            what = "rounding: awq" if recipe.balance == "none" else f"balance: {recipe.balance}"
            raise UserError(
                f"recipes.{name}: rotation does not go with {what}: balancing is folded into what "
                "comes before a linear, which no longer reads that. Leave one of them out."
            )
    for kind in config["inference"]["variants"]:
        check_variant(f"{config['recipe']}-{kind}", config, "inference.variants")
    evaluated_variants(config)
