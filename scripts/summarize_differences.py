"""Rule summarize_differences: the numbers of a variant's comparisons in one file."""

from collections.abc import Mapping, Sequence

import numpy as np

from ditquant.artifacts import read_json, write_json
from ditquant.job import run_script
from ditquant.metrics import finite
from ditquant.provenance import KEY
from ditquant.seals import SEAL_KEYS

SUMMARIZED = ("psnr", "ssim", "latent_relative_error", "max_absolute_difference")


def summarize(
    prompts: Sequence[Mapping[str, float | None]],
) -> dict[str, dict[str, float | None]]:
    """Median, smallest and largest of every number over the prompts; None stands for infinity."""
    summary = {}
    for key in SUMMARIZED:
        found = [prompt[key] for prompt in prompts]
        values = [float("inf") if value is None else value for value in found]
        summary[key] = {
            "median": finite(float(np.median(values))),
            "min": finite(float(np.min(values))),
            "max": finite(float(np.max(values))),
        }
    return summary


def main(*, numbers: list[str], stats: str, variant: str) -> None:
    """Writes one entry a prompt, in the order asked for, and a summary."""
    entries = [read_json(path, "ditquant.image_difference") for path in numbers]
    prompts = [
        {key: entry[key] for key in entry if key not in (*SEAL_KEYS, KEY, "variant")}
        for entry in entries
    ]
    document = {"variant": variant, "summary": summarize(prompts), "prompts": prompts}
    write_json(stats, "ditquant.diff_stats", document)


run_script(main, globals())
