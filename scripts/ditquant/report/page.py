"""The report: one self-contained HTML page about a run.

`report_data` and `block_report` read the run's folder, `headlines` says what comes first, and
`templates/report.html.j2` lays it out. All text is escaped by the template engine.
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
from ..evaluation.table import FORMAT, read_summary
from ..plots.activation_plots import PLOTS
from ..plots.charts import for_page
from ..plots.evaluation_charts import CHARTS
from ..readable import fmt
from . import report_data
from .block_report import block_chart, divergences, recipe_results, weight_sqnr
from .headlines import headline_cards, lede
from .report_data import Data

TEMPLATES = Path(__file__).parent / "templates"

# Light to dark blue; dark is what deserves a look.
_PALE, _DEEP = np.array([232, 241, 248.0]), np.array([6, 64, 115.0])


def _heat(values: Mapping[str, float], darker_is_larger: bool) -> Data:
    """Numbers by linear name -> a `layer_grid` of cells with text, background and readable ink."""
    grid = report_data.layer_grid(values)
    span = (grid["high"] - grid["low"]) or 1.0

    def cell(value: float | None) -> Data | None:
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


def _facts(config: Mapping[str, Any]) -> dict[str, str]:
    inference, weights, activations = (
        config[part] for part in ("inference", "weights", "activations")
    )
    return {
        "Model": f"{config['model']['name']}, computed in {config['model']['dtype']}",
        "Calibration": f"{config['num_images']} images of {config['num_steps']} steps, "
        f"guidance {config['calibration']['cfg_weight']:g}, noise seed {config['seed']}",
        "Weight track": f"{weights['num_images']} images, every {weights['stride']}th step",
        "Activation track": f"{activations['num_images']} images, every "
        f"{activations['stride']}th step, {activations['bits']} bits, {activations['granularity']} "
        f"scales by {activations['range']}",
        "Pictures and evaluation": f"{inference['num_steps']} steps, guidance "
        f"{inference['cfg_weight']:g}, noise seed {inference['seed']}",
        "Recipes": ", ".join(config["recipes"]),
    }


def _sizes(results: Path, recipes: Sequence[str], full_bytes: float | None) -> list[Data]:
    sizes: list[Data] = []
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


def collect(
    results: Path,
    config: Mapping[str, Any],
    prompts: Mapping[str, str],
    variants: Sequence[str],
    evaluated: Sequence[str],
    recipes: Sequence[str],
) -> Data:
    """Everything that the template shows.

    Args:
        results: the run's folder.
        config: validated configuration with all defaults.
        prompts: prompt id -> text, of the pictures to show.
        variants: of these pictures, beside full precision.
        evaluated: rows of the evaluation, in order; empty if there was none.
        recipes: whose checkpoints exist.
    """
    folder = results / "evaluation"
    summary = read_summary(folder / "summary.csv") if evaluated else []
    documents = {name: read_json(folder / f"{name}.json", FORMAT) for name in evaluated}
    rows = {row["variant"]: row for row in summary}
    own = config["recipe"]
    options = {name: config["recipes"][name] for name in recipes}
    blocks = recipe_results(results / "weights", options)
    sqnr = weight_sqnr(results / "weights" / own / "blocks") if own in recipes else {}
    ranges = report_data.activation_ranges(results)
    notes = {name: plot.note for name, plot in PLOTS.items()}
    activations = report_data.activation_summary(results, notes, options)
    sizes = _sizes(results, recipes, rows["full"]["model_bytes"] if "full" in rows else None)
    stages = report_data.stage_times(results / "benchmarks")
    return {
        "version": __version__,
        "run": {
            "name": config["run"],
            "model": config["model"]["name"],
            "dtype": config["model"]["dtype"],
            "recipe": own,
        },
        "lede": lede(config, sizes),
        "cards": headline_cards(config, rows, documents),
        "pictures": report_data.pictures(results, prompts, variants),
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
        "facts": _facts(config),
        "configuration": yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True),
    }


def _evaluation_charts(folder: Path) -> list[Data]:
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


def stage_table(stages: Sequence[Data]) -> list[str]:
    """The times of all stages as lines for the log."""
    width = max((len(stage["rule"]) for stage in stages), default=0)
    lines = [
        f"{stage['rule']:{width}}  {stage['jobs']:4d} jobs  {fmt(stage['seconds'], 'seconds'):>14}"
        for stage in stages
    ]
    total = sum(stage["seconds"] for stage in stages)
    return [*lines, f"{'all stages':{width}}  {'':9}  {fmt(total, 'seconds'):>14}"]
