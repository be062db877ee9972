"""Rule collect_activations: statistics of every linear input along one image's trajectory."""

from pathlib import Path

from ditquant.activation_statistics import save_statistics
from ditquant.calibration import load_trajectory
from ditquant.job import job
from ditquant.models.load import DTYPES, load_mmdit
from ditquant.models.spec import read_spec
from ditquant.observe import measure_image, measured_steps
from ditquant.progress import ticking


def main(trajectory: str, statistics: str, model: dict, stride: int) -> None:
    """Measures every stride-th step of the stored trajectory with the full-precision model."""
    spec = read_spec(model["name"], model["checkpoint"])
    network = load_mmdit(spec, DTYPES[model["dtype"]])
    stored = load_trajectory(trajectory)
    image = Path(trajectory).stem
    steps = measured_steps(stored.num_steps, stride)
    with ticking(f"activations of image {image}", len(steps)) as tick:
        measured = measure_image(network, stored, steps, spec.name, image, tick)
    save_statistics(statistics, measured)


if "snakemake" in globals():
    with job(snakemake):
        main(
            snakemake.input.trajectory,
            snakemake.output.statistics,
            snakemake.params.model,
            snakemake.params.stride,
        )
