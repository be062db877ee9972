"""Rule summarize_evaluation: the table of all variants, and its plots."""

from pathlib import Path

from ditquant.artifacts import read_json, write_file
from ditquant.evaluation.table import FORMAT, TIMING, summary_csv, summary_row
from ditquant.files import write_text
from ditquant.job import LOG, run_script
from ditquant.plots.charts import as_png, as_svg
from ditquant.plots.evaluation_charts import CHARTS
from ditquant.provenance import check_alike
from ditquant.readable import fmt


def main(
    *,
    evaluations: list[str],
    timings: list[str],
    summary: str,
    plots: list[str],
    baselines: dict[str, str],
) -> None:
    """Writes summary.csv, one row a variant in the order given, and every plot as SVG and PNG.

    Args:
        plots: the SVG files, named like the entries of `evaluation_charts.CHARTS`; the PNG files
            stand beside them.
        baselines: variant -> the variant that its error is divided by.
    """
    check_alike(evaluations, "plan")
    documents = [read_json(path, FORMAT) for path in evaluations]
    by_name = {document["variant"]: document for document in documents}
    rows = []
    for document, path in zip(documents, timings, strict=True):
        baseline = by_name.get(baselines.get(document["variant"], ""))
        rows.append(summary_row(document, read_json(path, TIMING), baseline))
    write_text(summary, summary_csv(rows))
    for row in rows:
        LOG.info(
            "%-24s latent error %.3g, PSNR %.1f dB, SSIM %.3f%s",
            row["variant"],
            row["latent_relative_error_median"],
            row["psnr_median"],
            row["ssim_median"],
            f", {fmt(row['latent_error_ratio'], 'times')} {row['baseline']}"
            if row["baseline"]
            else "",
        )
    for plot in map(Path, plots):
        chart = CHARTS[plot.stem].draw(documents)
        write_file(plot, as_svg(chart).encode(), "ditquant.plot")
        write_file(plot.with_suffix(".png"), as_png(chart), "ditquant.plot")


run_script(main, globals())
