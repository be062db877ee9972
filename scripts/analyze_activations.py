"""Rule analyze_activations: scales of the single-tier activation quantization."""

from ditquant.activation_statistics import load_statistics
from ditquant.artifacts import write_json
from ditquant.job import job
from ditquant.ranges import CONFIG_FORMAT, ScaleOptions, single_tier


def main(
    statistics: str, config: str, bits: int, granularity: str, rule: str, options: dict
) -> None:
    """Writes the configuration that the a8 variants simulate."""
    document = single_tier(
        load_statistics(statistics), bits, granularity, rule, ScaleOptions(**options)
    )
    write_json(config, CONFIG_FORMAT, document)


if "snakemake" in globals():
    with job(snakemake):
        params = snakemake.params
        main(
            snakemake.input.statistics,
            snakemake.output.config,
            params.bits,
            params.granularity,
            params.range,
            params.options,
        )
