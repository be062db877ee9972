"""The weight track for the report: every block's error by recipe, and every layer's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ..artifacts import read_json
from ..planning.recipes import Recipe
from ..plots.charts import (
    as_svg,
    figure,
    for_page,
    legend_below,
    legend_height,
    line_styles,
    log_axis,
    styled,
)
from ..weights.divergence import kept_text
from .what_was_run import BLOCK_FORMAT, Section, block_files

TUNING_FORMAT = "ditquant.tuning"


def _block(document: Mapping[str, Any]) -> Section:
    """One block's held-out errors; `error` is that of the codes that were kept."""
    learned = document["recipe"]["rounding"] != "rtn"
    rtn = document["hard_error"]["rtn"]["held_out"]
    error = document["kept_error"]["held_out"]
    proposed = document["hard_error"].get("result")
    return {
        "name": document["block"],
        "rtn_error": rtn,
        "learned_error": proposed["held_out"] if learned and proposed else None,
        "error": error,
        "ratio": error / rtn if rtn else None,
        "binary_share": document["binary_share"],
        "accepted": learned and document["accepted"],
        "kept": kept_text(document),
        "diverged": document["diverged"],
    }


def _grid(options: Mapping[str, Any]) -> str:
    return "per channel" if options["grid"] == "channel" else f"groups of {options['group_size']}"


def _tuning(results: Path, recipe: str) -> Section:
    """Held-out velocity error before and after the tuning of a whole network."""
    document = read_json(results / "weights" / recipe / "tuned.json", TUNING_FORMAT)
    start, tuned = document["error"]["start"], document["error"].get("tuned")
    return {
        "start": start,
        "tuned": tuned,
        "ratio": None if tuned is None else tuned / start,
        "kept": document["kept"],
        "diverged": document["diverged"],
    }


def recipe_results(results: Path, recipes: Mapping[str, Mapping[str, Any]]) -> list[Section]:
    """One entry a recipe with its blocks in order.

    Args:
        results: a run's folder.
        recipes: name -> options, of those whose checkpoints exist.
    """
    entries = []
    for name, options in recipes.items():
        blocks = [_block(read_json(file, BLOCK_FORMAT)) for file in block_files(results, name)]
        if not blocks:
            continue
        shares = [block["binary_share"] for block in blocks if block["binary_share"] is not None]
        error, rtn = (fmean(block[key] for block in blocks) for key in ("error", "rtn_error"))
        entries.append(
            {
                "name": name,
                "rounding": options["rounding"],
                "bits": options["bits"],
                "grid": _grid(options),
                "mean_error": error,
                "mean_ratio": error / rtn if rtn else None,
                "smallest_binary_share": min(shares, default=None),
                "learned": options["rounding"] != "rtn",
                "accepted": sum(block["accepted"] for block in blocks),
                "tuning": _tuning(results, name) if Recipe.from_params(options).tuning else None,
                "blocks": blocks,
            }
        )
    return entries


def divergences(recipes: Sequence[Section]) -> list[Section]:
    """Where learning diverged: recipe, place, reason, advice and what was kept instead.

    Args:
        recipes: from `recipe_results`.
    """
    found = []
    for recipe in recipes:
        places = [(f"block {block['name']}", block) for block in recipe["blocks"]]
        if recipe["tuning"]:
            places += [("the tuning of all blocks", recipe["tuning"])]
        for place, result in places:
            if result["diverged"]:
                kept = "start" if place.startswith("the") else result["kept"].partition(",")[0]
                found.append(
                    {"recipe": recipe["name"], "place": place, "kept": kept, **result["diverged"]}
                )
    return found


def weight_sqnr(files: Sequence[Path]) -> dict[str, float]:
    """Linear name -> signal-to-quantization-noise ratio of its weights in dB, of one recipe."""
    found: dict[str, float] = {}
    for file in files:
        for name, layer in read_json(file, BLOCK_FORMAT)["linears"].items():
            found[name] = layer["weight_sqnr_db"]
    return found


@styled()
def block_chart(recipes: Sequence[Mapping[str, Any]]) -> str:
    """Every block's error by recipe, as SVG for a page; a logarithmic scale."""
    names = [block["name"] for block in recipes[0]["blocks"]]
    styles = line_styles([recipe["name"] for recipe in recipes])
    width, columns = (4.9, 2) if len(names) <= 8 else (9.6, 4)
    chart, axes = figure(width, 3.1 + legend_height(len(recipes), columns))
    for recipe in recipes:
        errors = [block["error"] for block in recipe["blocks"]]
        name = recipe["name"]
        axes.plot(range(len(errors)), errors, ms=5, lw=1.2, label=name, **styles[name])
    log_axis(axes, "y")
    axes.set_xticks(range(len(names)), names, rotation=90 if len(names) > 16 else 0)
    axes.set_ylabel("error / update energy")
    axes.grid(axis="y")
    legend_below(chart, axes, columns)
    return for_page(as_svg(chart))
