"""The report: one self-contained HTML page about a run.

`what_was_run`, `report_data` and `block_report` read the run's folder, `headlines` says what comes
first, and `templates/report.html.j2` lays it out. All text is escaped by the template engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from .. import __version__
from ..artifacts import read_file, read_json
from ..evaluation.table import FORMAT, TIMING, checked_summary
from ..planning.recipes import Recipe
from ..planning.variants import Variant
from ..plots.charts import for_page
from ..plots.evaluation_charts import CHARTS
from ..readable import fmt
from . import report_data
from .block_report import block_chart, divergences, weight_results
from .headlines import headline_cards, lede
from .what_was_run import Section, Shown, check_run, facts, what_was_run

TEMPLATES = Path(__file__).parent / "templates"


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
    recipes = {
        name: Recipe.from_params(options) for name, options in run.get("recipes", {}).items()
    }
    weights = weight_results(results, recipes)
    sqnr = next((one.sqnr for one in weights if one.name == shown.recipe), {})
    full_bytes = rows["full"]["model_bytes"] if "full" in rows else None
    sizes = report_data.model_sizes(results, recipes, full_bytes)
    stages = report_data.stage_times(results / "benchmarks")
    model = run.get("model", {})
    return {
        "version": __version__,
        "run": {
            "name": results.name,
            "model": model.get("name", "a model"),
            "dtype": model.get("dtype", "the model's precision"),
            "recipe": shown.recipe,
        },
        "lede": _lede(results, shown, recipes, sizes),
        "cards": headline_cards(shown.recipe, rows, documents),
        "pictures": report_data.pictures(results, shown.prompts, shown.variants),
        "summary": summary,
        "judged": any(row["judge_accuracy"] is not None for row in summary),
        "evaluation_charts": _evaluation_charts(folder / "plots"),
        "recipes": weights,
        "diverged": divergences(weights),
        "block_chart": Markup(block_chart(weights)) if weights else None,
        "weight_grid": report_data.heat_map(sqnr, darker_is_larger=False),
        "range_grid": report_data.heat_map(
            report_data.activation_ranges(results), darker_is_larger=True
        ),
        "activations": report_data.activation_summary(results, recipes),
        "sizes": sizes,
        "stages": stages,
        "total_seconds": sum(stage.seconds for stage in stages),
        "facts": facts(run),
        "configuration": yaml.safe_dump(run, sort_keys=False, allow_unicode=True),
    }


def _lede(
    results: Path, shown: Shown, recipes: Mapping[str, Recipe], sizes: Sequence[report_data.Size]
) -> str:
    recipe = recipes.get(shown.recipe)
    if recipe is None:
        return ""
    kinds = {Variant.parse(variant).kind for variant in shown.variants}
    bits = report_data.activation_bits(results, shown.recipe, recipe)
    return lede(shown.recipe, recipe, kinds, bits, sizes)


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


def render(data: Section) -> str:
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


def stage_table(stages: Sequence[report_data.Stage]) -> list[str]:
    """The times of all stages as lines for the log."""
    width = max((len(stage.rule) for stage in stages), default=0)
    lines = [
        f"{stage.rule:{width}}  {stage.jobs:4d} jobs  {fmt(stage.seconds, 'seconds'):>14}"
        for stage in stages
    ]
    total = sum(stage.seconds for stage in stages)
    return [*lines, f"{'all stages':{width}}  {'':9}  {fmt(total, 'seconds'):>14}"]
