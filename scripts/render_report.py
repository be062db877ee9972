"""Rule render_report: the page that shows a whole run."""

from pathlib import Path

from ditquant.artifacts import write_file
from ditquant.job import LOG, job
from ditquant.report.page import collect, render, stage_table
from ditquant.report.what_was_run import Shown


def main(page: str, shown: Shown) -> None:
    """Writes the page and logs the time of every stage; see `page.collect`.

    The run's folder is the one above the page's."""
    data = collect(Path(page).parents[1], shown)
    write_file(page, render(data).encode(), "ditquant.report")
    LOG.info("Time of every stage:")
    for line in stage_table(data["stages"]):
        LOG.info("  %s", line)
    LOG.info("The report: %s", page)


if "snakemake" in globals():
    with job(snakemake):
        params = snakemake.params
        shown = Shown(
            params.recipe, params.prompts, params.variants, params.evaluated, params.recipes
        )
        main(snakemake.output.page, shown)
