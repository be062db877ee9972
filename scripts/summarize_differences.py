"""Rule summarize_differences: the numbers of a variant's comparisons in one file."""

import numpy as np

from ditquant.artifacts import read_json, write_json
from ditquant.job import job
from ditquant.metrics import finite
from ditquant.provenance import KEY
from ditquant.seals import SEAL_KEYS

SUMMARIZED = ("psnr", "ssim", "latent_relative_error", "max_absolute_difference")


def summarize(prompts: list[dict]) -> dict[str, dict[str, float | None]]:
    """Median, smallest and largest of every number over the prompts; None stands for infinity."""
    summary = {}
    for key in SUMMARIZED:
        values = [float("inf") if prompt[key] is None else prompt[key] for prompt in prompts]
        summary[key] = {
            "median": finite(float(np.median(values))),
            "min": finite(float(np.min(values))),
            "max": finite(float(np.max(values))),
        }
    return summary


def main(numbers: list[str], output: str, variant: str) -> None:
    """Writes one entry a prompt, in the order asked for, and a summary."""
    entries = [read_json(path, "ditquant.image_difference") for path in numbers]
    prompts = [
        {key: entry[key] for key in entry if key not in (*SEAL_KEYS, KEY, "variant")}
        for entry in entries
    ]
    document = {"variant": variant, "summary": summarize(prompts), "prompts": prompts}
    write_json(output, "ditquant.diff_stats", document)


if "snakemake" in globals():
    with job(snakemake):
        main(snakemake.input.numbers, snakemake.output.stats, snakemake.wildcards.variant)
