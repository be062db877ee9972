"""Rule analyze_activations_multitier: a tier for each layer and sigma, and its scales."""

from pathlib import Path

from ditquant.activation_statistics import load_statistics
from ditquant.artifacts import write_json
from ditquant.checkpoint import load_quantized
from ditquant.job import job
from ditquant.models.load import DTYPES, load_mmdit
from ditquant.models.spec import read_spec
from ditquant.ranges import CONFIG_FORMAT, ScaleOptions
from ditquant.sensitivity import input_gains, sensitive_tiers
from ditquant.tiers import multi_tier


def _gains(model: dict, checkpoint: str | None) -> dict[str, float]:
    spec, dtype = read_spec(model["name"], model["checkpoint"]), DTYPES[model["dtype"]]
    if checkpoint is None:
        return input_gains(load_mmdit(spec, dtype))
    return input_gains(load_quantized(spec, Path(checkpoint).parent, dtype))


def main(
    statistics: str,
    config: str,
    granularity: str,
    rule: str,
    tiers: dict,
    options: dict,
    model: dict | None = None,
    checkpoint: str | None = None,
) -> None:
    """Writes the configuration that the multitier variants simulate.

    Args:
        tiers: `activations.tiers` of the configuration.
        model, checkpoint: of the weights behind the inputs, where errors are weighted by them; see
            `collect_activations`.
    """
    measured, scales = load_statistics(statistics), ScaleOptions(**options)
    if tiers["mode"] == "sensitivity":
        gains = None if tiers["weighting"] == "relative" else _gains(model, checkpoint)
        document = sensitive_tiers(
            measured, granularity, rule, tiers["average_bits"], gains, scales
        )
    else:
        limits = {kind: tiers[kind] for kind in ("linear", "post_gelu")}
        document = multi_tier(measured, granularity, rule, limits, scales)
    write_json(config, CONFIG_FORMAT, document)


if "snakemake" in globals():
    with job(snakemake):
        params = snakemake.params
        main(
            snakemake.input.statistics,
            snakemake.output.config,
            params.granularity,
            params.range,
            params.tiers,
            params.options,
            params.model,
            snakemake.input.get("checkpoint"),
        )
