"""Rules analyze_activations and its kin: one activation configuration from the statistics."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ditquant.activation_configs import make_config
from ditquant.activation_statistics import load_statistics
from ditquant.artifacts import write_json
from ditquant.checkpoint import load_quantized
from ditquant.job import job
from ditquant.models.load import DTYPES, load_mmdit
from ditquant.models.spec import read_spec
from ditquant.ranges import CONFIG_FORMAT
from ditquant.sensitivity import input_gains
from ditquant.velocity_sensitivity import load_velocity_errors


def main(
    statistics: str,
    config: str,
    asked: dict[str, Any],
    model: dict[str, Any] | None = None,
    checkpoint: str | None = None,
    sensitivity: Sequence[str] = (),
) -> None:
    """Writes the configuration that a variant simulates.

    Args:
        asked: of `variant_names.activation_configs`.
        model, checkpoint: of the weights behind the inputs, where errors are weighted by them; see
            `collect_activations`.
        sensitivity: files of `measure_sensitivity`, where tiers are chosen by them.
    """

    def gains() -> dict[str, float]:
        assert model is not None
        spec, dtype = read_spec(model["name"], model["checkpoint"]), DTYPES[model["dtype"]]
        if checkpoint is None:
            return input_gains(load_mmdit(spec, dtype))
        return input_gains(load_quantized(spec, Path(checkpoint).parent, dtype))

    document = make_config(
        load_statistics(statistics), asked, gains, lambda: load_velocity_errors(sensitivity)
    )
    write_json(config, CONFIG_FORMAT, document)


if "snakemake" in globals():
    with job(snakemake):
        main(
            snakemake.input.statistics,
            snakemake.output.config,
            snakemake.params.asked,
            snakemake.params.model,
            snakemake.input.get("checkpoint"),
            snakemake.input.get("sensitivity", ()),
        )
