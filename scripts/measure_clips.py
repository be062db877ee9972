"""Rule measure_clips: what shorter activation ranges do to what linears compute."""

from pathlib import Path
from typing import Any

from ditquant.activations.clip_errors import save_clip_errors
from ditquant.activations.clip_search import measure_clip_errors
from ditquant.activations.configs import clip_configs
from ditquant.activations.input_statistics import load_statistics
from ditquant.activations.scheme import ActivationScheme
from ditquant.checkpoints.measured_model import load_measured
from ditquant.job import run_script
from ditquant.network.calibration import load_trajectory
from ditquant.network.sampling import strided_steps
from ditquant.progress import ticking


def main(
    trajectory: str,
    statistics: str,
    output: str,
    scheme: dict[str, Any],
    model: dict[str, Any],
    checkpoint: str | None = None,
) -> None:
    """Writes the errors of one image, at every stride-th step, for every share of the ranges.

    Args:
        scheme: `ActivationScheme.params`, of one with clips.
        checkpoint: of a recipe whose activations are its own; see `collect_activations`.
    """
    _, network = load_measured(model, checkpoint)
    stored, image = load_trajectory(trajectory), Path(trajectory).stem
    parsed = ActivationScheme.from_params(scheme)
    assert parsed.clips is not None
    steps = strided_steps(stored.num_steps, parsed.clips.stride)
    configs = clip_configs(load_statistics(statistics), parsed)
    with ticking("forward passes with shorter ranges", len(steps)) as tick:
        found = measure_clip_errors(network, stored, image, steps, configs, tick)
    save_clip_errors(output, found)


run_script(main, globals(), output="output.errors", scheme="params.scheme")
