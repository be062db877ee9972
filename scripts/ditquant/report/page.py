"""The report: one self-contained HTML page about a run.

`what_was_run`, `report_data` and `block_report` read the run's folder, and
`templates/report.html.j2` lays it out. All text is escaped by the template engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from .. import __version__
from ..artifacts import read_file, read_json
from ..evaluation.table import FORMAT, TIMING, checked_summary, error_ratio
from ..planning.recipes import Recipe
from ..planning.variants import Variant
from ..plots.charts import for_page
from ..plots.evaluation_charts import CHARTS
from ..readable import fmt
from . import report_data
from .block_report import block_chart, weight_results
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
        "lede": lede(results, shown, recipes, sizes),
        "cards": headline_cards(shown.recipe, rows, documents),
        "pictures": report_data.pictures(results, shown.prompts, shown.variants),
        "summary": summary,
        "judged": any(row["judge_accuracy"] is not None for row in summary),
        "evaluation_charts": [
            (chart, Markup(for_page(read_file(path, "ditquant.plot").decode())))
            for name, chart in CHARTS.items()
            if (path := folder / "plots" / f"{name}.svg").is_file()
        ],
        "recipes": weights,
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


@dataclass(frozen=True)
class Card:
    """A number, what it is, and what to know of it."""

    label: str
    value: str
    detail: str


def _between(low: float, high: float, how: str) -> str:
    return f"95 % interval {fmt(low, how)} to {fmt(high, how)}"


def headline_cards(
    recipe: str, rows: Mapping[str, Section], documents: Mapping[str, Section]
) -> list[Card]:
    """The numbers that answer: how small, how close, what learning and activations change.

    Args:
        recipe: that the page is about.
        rows, documents: of the evaluation's table and its files, by variant.
    """
    weights, a8 = f"{recipe}-weights", f"{recipe}-a8"
    cards = []
    if weights in rows and "full" in rows:
        small, large = rows[weights]["model_bytes"], rows["full"]["model_bytes"]
        detail = f"{fmt(small, 'bytes')} instead of {fmt(large, 'bytes')} in float16"
        cards.append(Card("Size of the MM-DiT", f"{large / small:.1f} × smaller", detail))
    for name, label in ((weights, "Pictures, weights quantized"), (a8, "Pictures, W4A8 simulated")):
        if name in rows:
            row = rows[name]
            detail = "median PSNR against full precision; " + _between(
                row["psnr_median_low"], row["psnr_median_high"], "1"
            )
            cards.append(Card(label, fmt(row["psnr_median"], "db"), detail))
    pairs = [(a8, weights, "Error of A8 against weights alone")]
    baseline = rows[weights]["baseline"] if weights in rows else None
    if baseline:
        label = f"Error against {Variant.parse(baseline).recipe}"
        pairs.insert(0, (weights, baseline, label))
    for name, against, label in pairs:
        if name in documents and against in documents:
            ratio, low, high = error_ratio(documents[name], documents[against])
            interval = _between(low, high, "2")
            detail = f"median latent error of {name} divided by that of {against}; {interval}"
            cards.append(Card(label, fmt(ratio, "times"), detail))
    best = a8 if a8 in rows else weights
    if best in rows and rows[best]["judge_accuracy"] is not None:
        detail = f"of the pictures by {best} satisfy the judge; at full precision " + fmt(
            rows["full"]["judge_accuracy"], "percent"
        )
        cards.append(
            Card("Captions drawn right", fmt(rows[best]["judge_accuracy"], "percent"), detail)
        )
    return cards


def lede(
    results: Path, shown: Shown, recipes: Mapping[str, Recipe], sizes: Iterable[report_data.Size]
) -> str:
    """One or two sentences on what the page's recipe did to what; none without its weights.

    Args:
        recipes: of the checkpoints that there are.
        sizes: theirs.
    """
    recipe = recipes.get(shown.recipe)
    if recipe is None:
        return ""
    kinds = {Variant.parse(variant).kind for variant in shown.variants}
    bits = report_data.activation_bits(results, shown.recipe, recipe)
    one = recipe.grid == "channel"
    grid = "one scale for each output channel" if one else f"groups of {recipe.group_size}"
    text = (
        f"The linears of every transformer block hold {recipe.bits}-bit weights "
        f"({grid}), chosen by {recipe.rounding}"
    )
    if bits and {"a8", "multitier"} & kinds:
        text += f", and their inputs are rounded to {bits} bits"
    others = recipe.others
    if others and others.quantize != "blocks":
        which = "adaLN" if others.quantize == "blocks+adaln" else "all other linears"
        text += f"; {which} hold {others.other_bits}-bit weights"
    text += "; everything else is full precision."
    if any(
        size.name == shown.recipe and (size.rest or 0) > (size.quantized or 0) for size in sizes
    ):
        text += " Most of the bytes that are left are layers that it does not touch."
    return text


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
