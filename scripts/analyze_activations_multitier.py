"""Rule analyze_activations_multitier: a tier for each layer and sigma, and its scales."""

from ditquant.activation_statistics import load_statistics
from ditquant.artifacts import write_json
from ditquant.job import job
from ditquant.ranges import CONFIG_FORMAT, ScaleOptions
from ditquant.tiers import multi_tier


def main(
    statistics: str, config: str, granularity: str, rule: str, tiers: dict, options: dict
) -> None:
    """Writes the configuration that the multitier variants simulate."""
    document = multi_tier(
        load_statistics(statistics), granularity, rule, tiers, ScaleOptions(**options)
    )
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
        )
