"""Rule summarize_evaluation: the table of all variants, and its plots."""

from ditquant.artifacts import read_json, write_text
from ditquant.evaluation import FORMAT, summary_csv, summary_row
from ditquant.evaluation_plots import plot_scores, plot_sigma_curves
from ditquant.job import LOG, job


def main(
    evaluations: list[str],
    timings: list[str],
    summary: str,
    errors_plot: str,
    psnr_plot: str,
    velocity_plot: str,
    divergence_plot: str,
) -> None:
    """Writes summary.csv, one row a variant in the order given, and four SVG plots."""
    documents = [read_json(path, FORMAT) for path in evaluations]
    rows = [
        summary_row(document, read_json(path, "ditquant.timing"))
        for document, path in zip(documents, timings, strict=True)
    ]
    write_text(summary, summary_csv(rows))
    for row in rows:
        LOG.info(
            "%-24s latent error %.3g, PSNR %.1f dB, SSIM %.3f",
            row["variant"],
            row["latent_relative_error_median"],
            row["psnr_median"],
            row["ssim_median"],
        )
    write_text(errors_plot, plot_scores(documents, "latent_relative_error"))
    write_text(psnr_plot, plot_scores(documents, "psnr"))
    write_text(velocity_plot, plot_sigma_curves(documents, "velocity_errors"))
    write_text(divergence_plot, plot_sigma_curves(documents, "divergence"))


if "snakemake" in globals():
    with job(snakemake):
        main(
            snakemake.input.evaluations,
            snakemake.input.timings,
            snakemake.output.summary,
            snakemake.output.errors_plot,
            snakemake.output.psnr_plot,
            snakemake.output.velocity_plot,
            snakemake.output.divergence_plot,
        )
