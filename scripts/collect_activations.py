"""Rule collect_activations: statistics of every linear input along one image's trajectory."""

from pathlib import Path
from typing import Any

from ditquant.activations.input_statistics import save_statistics
from ditquant.activations.observe import measure_image
from ditquant.checkpoints.measured_model import load_measured
from ditquant.job import run_script
from ditquant.network.calibration import load_trajectory
from ditquant.network.sampling import strided_steps
from ditquant.progress import ticking


def main(
    trajectory: str,
    statistics: str,
    model: dict[str, Any],
    stride: int,
    checkpoint: str | None = None,
    recipe: str | None = None,
) -> None:
    """Measures every stride-th step of the stored trajectory.

    Args:
        checkpoint: model.safetensors of a recipe's checkpoint, whose dequantized model is measured;
            None: the full-precision model is.
        recipe: the checkpoint's; recorded with the statistics.
    """
    spec, network = load_measured(model, checkpoint)
    measured_model = spec.name if checkpoint is None else f"{spec.name} by recipe {recipe}"
    stored = load_trajectory(trajectory)
    image = Path(trajectory).stem
    steps = strided_steps(stored.num_steps, stride)
    label = f"activations of image {image}" + (f" by {recipe}" if recipe else "")
    with ticking(label, len(steps)) as tick:
        measured = measure_image(network, stored, steps, measured_model, image, tick)
    save_statistics(statistics, measured)


run_script(main, globals(), recipe="params.recipe")
