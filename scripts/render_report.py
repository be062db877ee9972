"""Rule render_report: the page that shows a whole run."""

from pathlib import Path

from ditquant.artifacts import write_file
from ditquant.job import LOG, run_script
from ditquant.report.page import collect, render, stage_table
from ditquant.report.what_was_run import Shown


def main(
    *,
    page: str,
    recipe: str,
    prompts: list[str],
    variants: list[str],
    evaluated: list[str],
    recipes: list[str],
) -> None:
    """Writes the page and logs the time of every stage; see `page.collect`.

    The run's folder is the one above the page's.

    Args:
        recipe, prompts, variants, evaluated, recipes: see `Shown`.
    """
    shown = Shown(recipe, prompts, variants, evaluated, recipes)
    data = collect(Path(page).parents[1], shown)
    write_file(page, render(data).encode(), "ditquant.report")
    LOG.info("Time of every stage:")
    for line in stage_table(data["stages"]):
        LOG.info("  %s", line)
    LOG.info("The report: %s", page)


run_script(main, globals())
