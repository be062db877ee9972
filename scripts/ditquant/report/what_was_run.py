"""What was run, read from the files of the run and never from a configuration.

`check_run` refuses a folder whose files do not belong together; `what_was_run` reads the options
from the files that were made by them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..activations.scheme import MULTI_TIER, SINGLE_TIER, config_file
from ..artifacts import read_json
from ..errors import UserError
from ..evaluation.table import FORMAT
from ..planning.recipes import Recipe
from ..provenance import Lineage, check_alike, check_options, made_by

BLOCK_FORMAT = "ditquant.block_result"
# How pictures are drawn, in every document that is about some.
DRAWN = ("num_steps", "cfg_weight")
# A part of the page, as the template reads it.
Section = dict[str, Any]


@dataclass(frozen=True)
class Shown:
    """What a page is to show of a run.

    Attributes:
        recipe: the one that the page is about.
        prompts: ids of the pictures' prompts.
        variants: of the pictures, beside full precision.
        evaluated: rows of the evaluation, in order; empty if there was none.
        recipes: whose checkpoints exist.
    """

    recipe: str
    prompts: Sequence[str]
    variants: Sequence[str]
    evaluated: Sequence[str]
    recipes: Sequence[str]


def _comparisons(results: Path, shown: Shown) -> list[Path]:
    return [
        results / "compare" / variant / f"{prompt}.json"
        for variant in shown.variants
        for prompt in shown.prompts
    ]


def _evaluations(results: Path, shown: Shown) -> list[Path]:
    return [results / "evaluation" / f"{variant}.json" for variant in shown.evaluated]


def block_files(results: Path, recipe: str) -> list[Path]:
    """The results of the blocks of which a recipe's checkpoint was made, in order."""
    sources = made_by(results / "weights" / recipe / "model" / "config.json")["sources"]
    places = [place for place in sources if "/blocks/" in place and place.endswith(".json")]
    return [results / place for place in sorted(places)]


def checkpoint_config(results: Path, recipe: str) -> Section:
    """What a recipe's checkpoint says of itself."""
    return read_json(results / "weights" / recipe / "model" / "config.json", "ditquant.checkpoint")


def _recipe_options(results: Path, recipe: str) -> Section:
    """The options that a recipe's checkpoint was made by."""
    options = checkpoint_config(results, recipe)["recipe"]
    return {key: value for key, value in options.items() if key != "name"}


def _files(results: Path, shown: Shown) -> Iterator[Path]:
    """All that a page reads; some may not have been made."""
    yield results / "calibration" / "manifest.json"
    folders = [results / "activations"]
    for recipe in shown.recipes:
        folder = results / "weights" / recipe
        folders.append(folder / "activations")
        yield from (folder / "model" / "config.json", folder / "tuned.json")
    for folder in folders:
        yield folder / "layer_statistics.json"
        yield folder / "layer_temporal_analysis.json"
        yield from (folder / config_file(name) for name in (SINGLE_TIER, MULTI_TIER))
    yield from sorted((results / "activations" / "plots").glob("*.*"))
    if shown.evaluated:
        yield from sorted((results / "evaluation" / "plots").glob("*.svg"))
    for variant in shown.evaluated:
        yield results / "benchmarks" / "evaluation" / f"{variant}.json"
    yield from _evaluations(results, shown)
    yield from _comparisons(results, shown)


def _check_same_job(one: Path, other: Path) -> None:
    """Checks that two files were written by the same job."""
    if one.is_file() and other.is_file() and made_by(one) != made_by(other):
        raise _strangers(one, other, "they were made from other files or by other options")


def _strangers(one: Path, other: Path, why: str) -> UserError:
    return UserError(
        f"{one} and {other} do not belong together: {why}. Delete both and run the same command "
        "again."
    )


def check_run(results: Path, shown: Shown) -> Section | None:
    """Checks that all that a page reads was made of one piece.

    Returns:
        The options of the model; None where nothing was made by one.

    Raises:
        UserError: naming two files that do not belong together.
    """
    lineage = Lineage(results)
    for file in _files(results, shown):
        if file.is_file():
            lineage.check(file)
    activations = results / "activations"
    for name in ("layer_temporal_analysis.json", "layer_statistics.safetensors"):
        _check_same_job(activations / "layer_statistics.json", activations / name)
    for variant, file in zip(shown.evaluated, _evaluations(results, shown), strict=True):
        _check_same_job(file, results / "benchmarks" / "evaluation" / f"{variant}.json")
    check_alike(_evaluations(results, shown), "plan")
    for recipe in shown.recipes:
        options = Recipe.from_params(_recipe_options(results, recipe)).of_block().params()
        for file in block_files(results, recipe):
            check_options(file, f"the checkpoint of {recipe}", recipe=options)
    return lineage.model


def _agreed(values: Mapping[Path, Any]) -> Any:
    """What all files say.

    Raises:
        UserError: they do not agree.
    """
    first, *others = values
    for other in others:
        if values[other] != values[first]:
            raise _strangers(first, other, f"{values[first]} and {values[other]}")
    return values[first]


def _seeds(entries: Sequence[Mapping[str, Any]]) -> str:
    seeds = sorted({int(entry["seed"]) for entry in entries})
    return str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"


def what_was_run(results: Path, shown: Shown, model: Section | None) -> Section:
    """The options of everything that a page shows, by part; what was not made is left out.

    Args:
        model: of `check_run`.
    """
    run: Section = {"run": results.name} | ({"model": model} if model else {})
    manifest = results / "calibration" / "manifest.json"
    if manifest.is_file():
        images = read_json(manifest, "ditquant.calibration_manifest")["images"]
        run["calibration"] = {
            "images": len(images),
            **{key: images[0][key] for key in DRAWN},
            "seeds": _seeds(images),
        }
    blocks = [file for recipe in shown.recipes for file in block_files(results, recipe)]
    if blocks:
        streams = {file: read_json(file, BLOCK_FORMAT)["streams"] for file in blocks}
        run["weights"] = _agreed(streams)
        run["recipes"] = {name: _recipe_options(results, name) for name in shown.recipes}
    measured = results / "activations" / "layer_temporal_analysis.json"
    if measured.is_file():
        document = read_json(measured, "ditquant.layer_temporal_analysis")
        run["activations"] = {key: len(document[key]) for key in ("images", "steps")}
        single = results / "activations" / config_file(SINGLE_TIER)
        if single.is_file():
            run["activations"] |= read_json(single, "ditquant.quant_config")["configuration"]
    comparisons = _comparisons(results, shown)
    if comparisons:
        entries = {file: read_json(file, "ditquant.image_difference") for file in comparisons}
        alike = {file: {key: entry[key] for key in DRAWN} for file, entry in entries.items()}
        run["pictures"] = {**_agreed(alike), "seeds": _seeds(list(entries.values()))}
    if shown.evaluated:
        first = read_json(_evaluations(results, shown)[0], FORMAT)
        run["evaluation"] = {
            "captions": len(first["captions"]),
            **{key: first[key] for key in (*DRAWN, "image_size", "batch_size")},
            "seeds": _seeds(first["captions"]),
        }
    return run


_DRAWN = "{num_steps} steps, guidance {cfg_weight:g}, noise seeds {seeds}"
# Part of `what_was_run` -> what the page calls it and says of it.
_FACTS = {
    "model": ("Model", "{name}, computed in {dtype}"),
    "calibration": ("Calibration", "{images} images of " + _DRAWN),
    "weights": ("Weight track", "{images} images, one step in {stride}"),
    "activations": ("Activation track", "{images} images, {steps} steps"),
    "pictures": ("Pictures", _DRAWN),
    "evaluation": ("Evaluation", "{captions} captions, " + _DRAWN),
}


def facts(run: Section) -> dict[str, str]:
    """What was run, in a few words: part -> sentence."""
    words = {
        title: text.format(**run[part]) for part, (title, text) in _FACTS.items() if part in run
    }
    if "bits" in run.get("activations", {}):
        scales = ", {bits} bits, {granularity} scales by {range}"
        words["Activation track"] += scales.format(**run["activations"])
    if "recipes" in run:
        words["Recipes"] = ", ".join(run["recipes"])
    return words
