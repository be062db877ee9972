"""Rules analyze_activations and its kin: one activation configuration from the statistics."""

from pathlib import Path
from typing import Any

from ditquant.activation_statistics import load_statistics
from ditquant.artifacts import write_json
from ditquant.checkpoint import load_quantized
from ditquant.job import job
from ditquant.models.load import DTYPES, load_mmdit
from ditquant.models.spec import read_spec
from ditquant.ranges import CONFIG_FORMAT, ScaleOptions, single_tier
from ditquant.sensitivity import input_gains, sensitive_tiers
from ditquant.tiers import multi_tier


def _gains(model: dict[str, Any], checkpoint: str | None) -> dict[str, float]:
    spec, dtype = read_spec(model["name"], model["checkpoint"]), DTYPES[model["dtype"]]
    if checkpoint is None:
        return input_gains(load_mmdit(spec, dtype))
    return input_gains(load_quantized(spec, Path(checkpoint).parent, dtype))


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
    measured, options = load_statistics(statistics), ScaleOptions(**asked["options"])
    scales = asked["granularity"], asked["range"]
    if "bits" in asked:
        document = single_tier(measured, asked["bits"], *scales, options)
    elif asked["tiers"]["mode"] == "sensitivity":
        tiers = asked["tiers"]
        gains = None if tiers["weighting"] == "relative" else _gains(model or {}, checkpoint)
        document = sensitive_tiers(measured, *scales, tiers["average_bits"], gains, options)
    else:
        limits = {kind: asked["tiers"][kind] for kind in ("linear", "post_gelu")}
        document = multi_tier(measured, *scales, limits, options)
    write_json(config, CONFIG_FORMAT, document)


if "snakemake" in globals():
    with job(snakemake):
        main(
            snakemake.input.statistics,
            snakemake.output.config,
            snakemake.params.asked,
            snakemake.params.model,
            snakemake.input.get("checkpoint"),
        )
