"""Rule measure_sensitivity: what each input's quantization alone does to velocity and latents."""

from collections.abc import Sequence
from typing import Any

from ditquant.activations.clip_errors import load_clip_errors
from ditquant.activations.configs import tier_configs
from ditquant.activations.input_statistics import load_statistics
from ditquant.activations.learned_ranges import load_intervals
from ditquant.activations.scheme import ActivationScheme
from ditquant.activations.velocity_errors import save_sensitivity
from ditquant.activations.velocity_sensitivity import measure_sensitivity, total_passes
from ditquant.checkpoints.measured_model import load_measured
from ditquant.job import run_script
from ditquant.network.calibration import load_trajectory
from ditquant.network.sampling import strided_steps
from ditquant.progress import ticking
from ditquant.provenance import check_options


def main(
    trajectory: str,
    statistics: str,
    output: str,
    scheme: dict[str, Any],
    model: dict[str, Any],
    checkpoint: str | None = None,
    learned: Sequence[str] = (),
    learned_bits: int = 0,
    clips: Sequence[str] = (),
) -> None:
    """Writes the velocity errors of one image, at every stride-th step, for every tier; where they
    are weighed by the latents, what later steps make of them too.

    Args:
        scheme: `ActivationScheme.params`, of one with tiers.
        checkpoint: of a recipe whose activations are its own; see `collect_activations`.
        learned, learned_bits, clips: see `analyze_activations`.
    """
    for path in clips:
        check_options(path, output, scheme=scheme)
    _, network = load_measured(model, checkpoint)
    stored = load_trajectory(trajectory)
    parsed = ActivationScheme.from_params(scheme)
    assert parsed.tiers is not None
    steps = strided_steps(stored.num_steps, parsed.tiers.stride)
    measured = load_statistics(statistics)
    intervals = load_intervals(learned, learned_bits, measured.input_of)
    tried = load_clip_errors(clips) if clips else None
    configs = tier_configs(measured, parsed, intervals, tried)
    follows = parsed.tiers.weighting == "latents"
    passes = total_passes(configs, steps, stored.num_steps, follows)
    with ticking("forward passes of single inputs", passes) as tick:
        found = measure_sensitivity(network, stored, steps, configs, follows, tick)
    save_sensitivity(output, found, list(configs))


run_script(main, globals(), output="output.errors", scheme="params.scheme")
