"""What learned rounding gains over round-to-nearest, block by block and in the final latents.

    snakemake --cores all weights --config recipe=adaround     (and rtn, rtn-channel, ...)
    .venv/bin/python benchmarks/weight_track.py --json benchmarks/results/weight_track.json

Reads the block results of the embedded model's run, then draws held-out captions with each recipe's
weights and full-precision activations and compares the final latents with those of the
full-precision model: |z - z_full|^2 / |z_full|^2, same noise, 28 steps, guidance 4.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "scripts"))

from ditquant.artifacts import read_json  # noqa: E402
from ditquant.backend import mx, to_numpy  # noqa: E402
from ditquant.checkpoints.checkpoint import load_quantized  # noqa: E402
from ditquant.metrics import bootstrap_interval, relative_error  # noqa: E402
from ditquant.models.spec import ModelSpec, read_spec  # noqa: E402
from ditquant.models.text import encode_texts  # noqa: E402
from ditquant.network.blocks import Network  # noqa: E402
from ditquant.network.diffusionkit import load_network  # noqa: E402
from ditquant.network.sampling import initial_latents, latent_shape, sample_euler, sigma_schedule  # noqa: E402
from ditquant.planning.prompt_files import read_prompts  # noqa: E402
from ditquant.weights.divergence import kept_text  # noqa: E402

STEPS, CFG_WEIGHT, SEED, BATCH = 28, 4.0, 42, 8


def block_rows(run: Path, recipe: str, blocks: list[str]) -> list[dict[str, Any]]:
    """One row a block: hard errors, their ratio to RTN's, share binarised, seconds of the job."""
    rows = []
    for block in blocks:
        document = read_json(
            run / "weights" / recipe / "blocks" / f"{block}.json", "ditquant.block_result"
        )
        rtn, result = document["hard_error"]["rtn"], document["kept_error"]
        benchmark = run / "benchmarks" / "optimize_block" / f"{recipe}-{block}.tsv"
        with benchmark.open(newline="") as file:
            seconds = float(next(csv.DictReader(file, delimiter="\t"))["s"])
        rows.append(
            {
                "block": block,
                "kept": kept_text(document),
                "rtn_held_out": rtn["held_out"],
                "ratio_held_out": result["held_out"] / rtn["held_out"],
                "ratio_train": result["train"] / rtn["train"],
                "binary_share": document["binary_share"],
                "job_seconds": seconds,
            }
        )
    return rows


def final_latents(
    model: Network,
    spec: ModelSpec,
    prompts: list[str],
    before_step: Callable[[int, float], None] | None = None,
) -> np.ndarray:
    """(captions, h, w, channels), caption i from noise SEED + i; see `sample_euler`."""
    tokens, pooled = encode_texts(spec, [*prompts, ""], mx.float32, use_t5=False)
    sigmas = sigma_schedule(STEPS, spec.shift)
    shape = latent_shape(spec.image_size)
    latents = []
    for start in range(0, len(prompts), BATCH):
        rows = list(range(start, min(start + BATCH, len(prompts))))
        index = mx.array(rows + [len(prompts)] * len(rows))
        noise = [initial_latents(SEED + row, shape, sigmas[0]) for row in rows]
        latents.append(
            sample_euler(
                model,
                mx.concatenate(noise),
                sigmas,
                tokens[index],
                pooled[index],
                CFG_WEIGHT,
                before_step=before_step,
            )
        )
    return to_numpy(mx.concatenate(latents))


def latent_errors(latents: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    """Median and mean relative error over captions, and the mean's 95 % bootstrap interval."""
    errors = np.array(
        [relative_error(one, other) for one, other in zip(latents, reference, strict=True)]
    )
    return {
        "median": float(np.median(errors)),
        "mean": float(errors.mean()),
        "mean_interval": list(bootstrap_interval(errors, np.mean)),
        "per_caption": errors.tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="demo")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--captions", type=int, default=64)
    parser.add_argument(
        "--recipes", nargs="+", default=["rtn", "adaround", "rtn-channel", "adaround-channel"]
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    run = arguments.results / arguments.run
    spec = read_spec("demo")
    prompts = read_prompts(ROOT / "config" / "prompts" / "demo-evaluation.csv", "prompts")
    prompts = prompts[: arguments.captions]
    reference = final_latents(load_network(spec, mx.float32), spec, prompts)
    document: dict[str, Any] = {
        "command": "benchmarks/weight_track.py",
        "captions": len(prompts),
        "steps": STEPS,
        "cfg_weight": CFG_WEIGHT,
        "recipes": {},
    }
    for recipe in arguments.recipes:
        folder = run / "weights" / recipe / "model"
        latents = final_latents(load_quantized(spec, folder, mx.float32), spec, prompts)
        blocks = block_rows(run, recipe, spec.block_names)
        errors = latent_errors(latents, reference)
        options = json.loads((folder / "config.json").read_text())["recipe"]
        document["recipes"][recipe] = {
            "options": options, "blocks": blocks, "latent_relative_error": errors,
        }  # fmt: skip
        median, mean = errors["median"], errors["mean"]
        print(f"{recipe}: latent relative error {median:.4g} median, {mean:.4g} mean")
        for row in blocks:
            share = "" if row["binary_share"] is None else f", {row['binary_share']:.1%} binarised"
            print(
                f"  {row['block']}: {row['ratio_held_out']:.3f} x RTN held out, "
                f"{row['ratio_train']:.3f} x in training{share}, {row['job_seconds']:.0f} s"
            )
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
