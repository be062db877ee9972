"""Rule render_report: the page that shows a whole run."""

from pathlib import Path

from ditquant.artifacts import write_file
from ditquant.job import LOG, job
from ditquant.report.page import collect, render, stage_table


def main(
    page: str,
    config: dict,
    prompts: dict[str, str],
    variants: list[str],
    evaluated: list[str],
    recipes: list[str],
) -> None:
    """Writes the page and logs the time of every stage; see `page.collect`.

    The run's folder is the one above the page's."""
    data = collect(Path(page).parents[1], config, prompts, variants, evaluated, recipes)
    write_file(page, render(data).encode(), "ditquant.report")
    LOG.info("Time of every stage:")
    for line in stage_table(data["stages"]):
        LOG.info("  %s", line)
    LOG.info("The report: %s", page)


if "snakemake" in globals():
    with job(snakemake):
        params = snakemake.params
        main(
            snakemake.output.page,
            params.config,
            params.prompts,
            params.variants,
            params.evaluated,
            params.recipes,
        )
