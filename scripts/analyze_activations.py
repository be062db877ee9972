"""Rules analyze_activations and its kin: one activation configuration from the statistics."""

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


def main(
    statistics: str,
    config: str,
    asked: dict[str, Any],
    model: dict[str, Any] | None = None,
    checkpoint: str | None = None,
) -> None:
    """Writes the configuration that a variant simulates.

    Args:
        asked: of `variant_names.activation_configs`.
        model, checkpoint: of the weights behind the inputs, where errors are weighted by them; see
            `collect_activations`.
    """

    def gains() -> dict[str, float]:
        assert model is not None
        spec, dtype = read_spec(model["name"], model["checkpoint"]), DTYPES[model["dtype"]]
        if checkpoint is None:
            return input_gains(load_mmdit(spec, dtype))
        return input_gains(load_quantized(spec, Path(checkpoint).parent, dtype))

    write_json(config, CONFIG_FORMAT, make_config(load_statistics(statistics), asked, gains))


if "snakemake" in globals():
    with job(snakemake):
        main(
            snakemake.input.statistics,
            snakemake.output.config,
            snakemake.params.asked,
            snakemake.params.model,
            snakemake.input.get("checkpoint"),
        )
