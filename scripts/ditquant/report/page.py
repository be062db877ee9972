"""The report: one self-contained HTML page about a run.

`what_was_run`, `report_data` and `block_report` read the run's folder, `headlines` says what comes
first, and `templates/report.html.j2` lays it out. All text is escaped by the template engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from .. import __version__
from ..artifacts import read_file, read_json
from ..evaluation.table import FORMAT, TIMING, checked_summary
from ..planning.variants import Variant
from ..plots.activation_names import ACTIVATION_PLOTS
from ..plots.charts import for_page
from ..plots.evaluation_charts import CHARTS
from ..readable import fmt
from . import report_data
from .block_report import block_chart, divergences, recipe_results, weight_sqnr
from .headlines import headline_cards, lede
from .what_was_run import Section, Shown, block_files, check_run, facts, what_was_run

TEMPLATES = Path(__file__).parent / "templates"

# Light to dark blue; dark is what deserves a look.
_PALE, _DEEP = np.array([232, 241, 248.0]), np.array([6, 64, 115.0])


def _heat(values: Mapping[str, float], darker_is_larger: bool) -> Section:
    """Numbers by linear name -> a `layer_grid` of cells with text, background and readable ink."""
    grid = report_data.layer_grid(values)
    span = (grid["high"] - grid["low"]) or 1.0

    def cell(value: float | None) -> Section | None:
        if value is None:
            return None
        place = (value - grid["low"]) / span
        depth = place if darker_is_larger else 1 - place
        red, green, blue = np.round(_PALE + (_DEEP - _PALE) * depth).astype(int).tolist()
        ink = "#fff" if depth > 0.5 else "#16222e"
        text = fmt(value, "1")
        return {"text": text, "background": f"rgb({red} {green} {blue})", "ink": ink}

    rows = {place: [cell(value) for value in values] for place, values in grid["rows"].items()}
    return {"columns": grid["columns"], "rows": rows}


def _sizes(results: Path, recipes: Sequence[str], full_bytes: float | None) -> list[Section]:
    sizes: list[Section] = []
    if full_bytes:
        parts = dict.fromkeys(("quantized", "quantized_ratio", "rest"))
        sizes.append({"name": "float16", **parts, "total": full_bytes})
    for recipe in recipes:
        file = results / "weights" / recipe / "model" / "config.json"
        sizes.append({"name": recipe, **report_data.checkpoint_sizes(file)})
    largest = max((size["total"] for size in sizes), default=1)
    for size in sizes:
        size["share"] = round(100 * size["total"] / largest, 1)
        size["ratio"] = full_bytes / size["total"] if full_bytes else None
    return sizes


def collect(results: Path, shown: Shown) -> Section:
    """Everything that the template shows of a run's folder.

    Raises:
        UserError: files that are damaged, or that do not belong together.
    """
    run = what_was_run(results, shown, check_run(results, shown))
    folder = results / "evaluation"
    documents = {name: read_json(folder / f"{name}.json", FORMAT) for name in shown.evaluated}
    timings = results / "benchmarks" / "evaluation"
    took = {name: read_json(timings / f"{name}.json", TIMING) for name in shown.evaluated}
    summary = checked_summary(folder / "summary.csv", documents, took) if documents else []
    rows = {row["variant"]: row for row in summary}
    recipes = run.get("recipes", {})
    blocks = recipe_results(results, recipes)
    has_weights = shown.recipe in recipes
    sqnr = weight_sqnr(block_files(results, shown.recipe)) if has_weights else {}
    ranges = report_data.activation_ranges(results)
    notes = {name: plot.note for name, plot in ACTIVATION_PLOTS.items()}
    activations = report_data.activation_summary(results, notes, recipes)
    sizes = _sizes(results, list(recipes), rows["full"]["model_bytes"] if "full" in rows else None)
    stages = report_data.stage_times(results / "benchmarks")
    return {
        "version": __version__,
        "run": {
            "name": results.name,
            "model": run.get("model", {}).get("name", "a model"),
            "dtype": run.get("model", {}).get("dtype", "the model's precision"),
            "recipe": shown.recipe,
        },
        "lede": _lede(results, shown, recipes, sizes),
        "cards": headline_cards(shown.recipe, rows, documents),
        "pictures": report_data.pictures(results, shown.prompts, shown.variants),
        "summary": summary,
        "judged": any(row["judge_accuracy"] is not None for row in summary),
        "evaluation_charts": _evaluation_charts(folder / "plots"),
        "recipes": blocks,
        "diverged": divergences(blocks),
        "block_chart": Markup(block_chart(blocks)) if blocks else None,
        "weight_grid": _heat(sqnr, darker_is_larger=False) if sqnr else None,
        "range_grid": _heat(ranges, darker_is_larger=True) if ranges else None,
        "activations": activations,
        "sizes": sizes,
        "stages": stages,
        "total_seconds": sum(stage["seconds"] for stage in stages),
        "facts": facts(run),
        "configuration": yaml.safe_dump(run, sort_keys=False, allow_unicode=True),
    }


def _lede(
    results: Path, shown: Shown, recipes: Mapping[str, Section], sizes: Sequence[Section]
) -> str:
    options = recipes.get(shown.recipe)
    if options is None:
        return ""
    kinds = {Variant.parse(variant).kind for variant in shown.variants}
    bits = report_data.activation_bits(results, shown.recipe, options)
    return lede(shown.recipe, options, kinds, bits, sizes)


def _evaluation_charts(folder: Path) -> list[Section]:
    return [
        {
            "title": chart.title,
            "note": chart.note,
            "wide": chart.wide,
            "svg": Markup(for_page(read_file(folder / f"{name}.svg", "ditquant.plot").decode())),
        }
        for name, chart in CHARTS.items()
        if (folder / f"{name}.svg").is_file()
    ]


def render(data: Mapping[str, Any]) -> str:
    """The page as HTML text; see `collect`."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["fmt"] = fmt
    environment.filters["explain"] = report_data.explanation
    style = Markup((TEMPLATES / "report.css").read_text("utf-8"))
    return environment.get_template("report.html.j2").render(data, style=style)


def stage_table(stages: Sequence[Section]) -> list[str]:
    """The times of all stages as lines for the log."""
    width = max((len(stage["rule"]) for stage in stages), default=0)
    lines = [
        f"{stage['rule']:{width}}  {stage['jobs']:4d} jobs  {fmt(stage['seconds'], 'seconds'):>14}"
        for stage in stages
    ]
    total = sum(stage["seconds"] for stage in stages)
    return [*lines, f"{'all stages':{width}}  {'':9}  {fmt(total, 'seconds'):>14}"]
