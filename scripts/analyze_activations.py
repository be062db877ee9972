"""Rule analyze_activations: an activation configuration from the statistics."""

from collections.abc import Sequence
from typing import Any

from ditquant.activations.clip_errors import load_clip_errors
from ditquant.activations.configs import make_config
from ditquant.activations.input_statistics import load_statistics
from ditquant.activations.learned_ranges import load_intervals
from ditquant.activations.quant_config import CONFIG_FORMAT
from ditquant.activations.scheme import ActivationScheme
from ditquant.activations.tiers import input_gains
from ditquant.activations.velocity_errors import load_sensitivity
from ditquant.artifacts import write_json
from ditquant.checkpoints.measured_model import load_measured
from ditquant.job import run_script
from ditquant.provenance import check_options


def main(
    statistics: str,
    config: str,
    scheme: dict[str, Any],
    model: dict[str, Any] | None = None,
    checkpoint: str | None = None,
    sensitivity: Sequence[str] = (),
    learned: Sequence[str] = (),
    learned_bits: int = 0,
    clips: Sequence[str] = (),
) -> None:
    """Writes the configuration that a variant simulates.

    Args:
        scheme: `ActivationScheme.params`.
        model, checkpoint: of the weights behind the inputs, where errors are weighted by them; see
            `collect_activations`.
        sensitivity: files of `measure_sensitivity`, where tiers are chosen by them.
        learned, learned_bits: weights of the recipe's blocks, and the bits that they learned
            activation ranges for, where those are taken.
        clips: files of `measure_clips`, where ranges are chosen by them.
    """

    def gains() -> dict[str, float]:
        assert model is not None
        return input_gains(load_measured(model, checkpoint)[1])

    for path in (*sensitivity, *clips):
        check_options(path, config, scheme=scheme)
    measured = load_statistics(statistics)
    document = make_config(
        measured,
        ActivationScheme.from_params(scheme),
        gains,
        lambda: load_sensitivity(sensitivity),
        load_intervals(learned, learned_bits, measured.input_of),
        load_clip_errors(clips) if clips else None,
    )
    write_json(config, CONFIG_FORMAT, document)


run_script(main, globals())
