"""Rule visualize_activations: one plot of the activations."""

from pathlib import Path

from ditquant.activation_plots import draw
from ditquant.activation_statistics import load_statistics
from ditquant.artifacts import atomic_path, read_json
from ditquant.job import job
from ditquant.ranges import CONFIG_FORMAT


def main(statistics: str, configs: list[str], plot: str, snapshot_steps: list[int]) -> None:
    """Draws the plot that the output file is named after."""
    documents = [read_json(path, CONFIG_FORMAT) for path in configs]
    figure = draw(Path(plot).stem, load_statistics(statistics), documents, snapshot_steps)
    with atomic_path(plot) as temporary:
        # Without the writer's name and version the same picture has the same bytes.
        figure.savefig(temporary, metadata={"Software": None})


if "snakemake" in globals():
    with job(snakemake):
        main(
            snakemake.input.statistics,
            snakemake.input.configs,
            snakemake.output.plot,
            snakemake.params.snapshot_steps,
        )
