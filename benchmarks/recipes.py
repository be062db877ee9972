"""The recipes of a configuration against each other on the demo model, without Snakemake.

    .venv/bin/python benchmarks/recipes.py encode plan.safetensors
    .venv/bin/python benchmarks/recipes.py run plan.safetensors --json recipes.json

Does what the rules of the weight track do, with the same library calls, in one process: draws the
calibration trajectories (in batches), caches block inputs and outputs, quantizes every block by
every recipe, and draws the held-out captions with each recipe's weights and full-precision
activations: |z - z_full|^2 / |z_full|^2 of the final latents and PSNR of the pictures, 28 steps,
guidance 4, the noise of caption i from seed 42 + i. `encode` needs the text encoder, `run` does
not: it can go to another machine. Ratios are medians over the captions against the first `rtn`
recipe on the same kind of grid, with paired 95 % bootstrap intervals; the first 32 captions, and
all of them.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from in_process import (
    FIRST,
    PLAN,
    ROOT,
    SEED,
    STEPS,
    cache_blocks,
    encode,
    paired,
    quantize_blocks,
    quantized_model,
    sample,
    save_weights,
    tune,
)

from ditquant import metrics
from ditquant.artifacts import load_metadata, load_tensors
from ditquant.backend import describe_device, mx, to_numpy
from ditquant.models.load import load_vae_decoder
from ditquant.models.spec import read_spec
from ditquant.network.blocks import Network
from ditquant.network.diffusionkit import load_network
from ditquant.network.sampling import decode
from ditquant.planning.settings import block_options
from ditquant.weights.divergence import kept_text

BLOCK_KEYS = ("block", "kept", "diverged", "hard_error", "binary_share", "seconds")


def run(
    path: Path,
    output: Path | None,
    only: list[str],
    batch: int,
    budget: float,
    captions: int,
    save: Path | None,
) -> None:
    """All recipes of a plan; the JSON is written anew after each."""
    started = time.perf_counter()
    tensors, plan = load_tensors(path, PLAN), json.loads(load_metadata(path, PLAN)["plan"])
    tensors |= {name: tensor[:captions] for name, tensor in tensors.items() if "evaluation" in name}
    spec = read_spec("demo")
    model, decoder = load_network(spec, mx.float32), load_vae_decoder(spec, mx.float32)
    document: dict[str, Any] = {
        "command": "benchmarks/recipes.py",
        "device": describe_device(),
        "steps": STEPS,
        "plan": plan,
        "recipes": {},
    }

    def draw(network: Network) -> tuple[np.ndarray, np.ndarray]:
        final, _ = sample(network, spec, tensors, "evaluation", STEPS, SEED, batch)
        parts = [
            decode(decoder, final[at : at + batch], spec.latent_scale, spec.latent_shift)
            for at in range(0, len(final), batch)
        ]
        return to_numpy(final).astype(np.float64), np.concatenate(parts)

    reference, pictures = draw(model)
    with tempfile.TemporaryDirectory() as scratch:
        files = cache_blocks(Path(scratch), model, spec, tensors, plan, batch)
        print(f"{document['device']}: {len(files)} images, {time.perf_counter() - started:.0f} s")
        baselines: dict[str, np.ndarray] = {}
        quantized: dict[str, Any] = {}
        for name in plan["order"]:
            recipe = plan["recipes"][name]
            if only and name not in only:
                continue
            if time.perf_counter() - started > budget:
                print(f"{name}: no time left")
                continue
            begun = time.perf_counter()
            own = json.dumps(block_options(recipe), sort_keys=True)
            if own not in quantized:
                quantized[own] = quantize_blocks(Path(scratch), spec, files, recipe, plan["seed"])
            packed, parameters, blocks = quantized[own]
            packed, tuning = tune(
                Path(scratch), spec, files, recipe, plan["seed"], packed, parameters
            )
            took = time.perf_counter() - begun
            if save:
                save_weights(save / f"{name}.safetensors", packed, parameters)
            network, sizes = quantized_model(spec, recipe, packed, parameters)
            final, drawn = draw(network)
            errors = np.array(
                [metrics.relative_error(*pair) for pair in zip(final, reference, strict=True)]
            )
            if recipe["rounding"] == "rtn" and recipe["grid"] not in baselines:
                baselines[recipe["grid"]] = errors
            baseline = baselines[recipe["grid"]]
            psnr = [metrics.psnr(*pair) for pair in zip(drawn, pictures, strict=True)]
            row = {
                "options": recipe,
                "seconds": took,
                **sizes,
                "first": paired(errors[:FIRST], baseline[:FIRST]),
                "all": paired(errors, baseline),
                "psnr_median_first": float(np.median(psnr[:FIRST])),
                "psnr_median": float(np.median(psnr)),
                "blocks": [
                    {
                        key: block[key]
                        for key in (
                            "block",
                            "kept",
                            "diverged",
                            "hard_error",
                            "binary_share",
                            "seconds",
                        )
                    }
                    for block in blocks
                ],
                "tuning": tuning,
                "errors": errors.tolist(),
            }
            document["recipes"][name] = row
            ratios = [
                block["hard_error"].get("result", block["kept_error"])["held_out"]
                / block["hard_error"]["rtn"]["held_out"]
                for block in blocks
            ]
            velocity = ""
            if tuning:
                start, error = tuning["error"]["start"], tuning["error"].get("tuned", math.inf)
                velocity = f" velocity {start:.5f} to {error:.5f}, kept {kept_text(tuning)}"
            shares = [block["binary_share"] for block in blocks if block["binary_share"]]
            print(
                f"{name:18s} {took:5.0f} s  first {FIRST}: {row['first']['ratio']:.3f} x, "
                f"{row['psnr_median_first']:.2f} dB | all: {row['all']['ratio']:.3f} x "
                f"({row['all']['interval'][0]:.2f} to {row['all']['interval'][1]:.2f}), geometric "
                f"{row['all']['geometric_ratio']:.3f}, {row['psnr_median']:.2f} dB | quantized "
                f"{sizes['quantized_ratio']:.4f} | blocks {np.round(ratios, 3).tolist()} "
                f"{[kept_text(block) for block in blocks]} binary {min(shares, default=0):.4f}"
                f"{velocity}",
                flush=True,
            )
            if output:
                output.write_text(json.dumps(document, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["encode", "run"])
    parser.add_argument("plan", type=Path)
    parser.add_argument("--configfile", type=Path, default=ROOT / "config" / "demo-quality.yaml")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--recipes", nargs="*", default=[], help="only these; rtn must be first")
    parser.add_argument("--batch", type=int, default=64, help="captions drawn at once")
    parser.add_argument("--captions", type=int, default=256, help="held-out ones, from the first")
    parser.add_argument(
        "--budget", type=float, default=math.inf, help="seconds; no recipe begins after"
    )
    parser.add_argument("--save", type=Path, help="existing folder for each recipe's weights")
    arguments = parser.parse_args()
    if arguments.what == "encode":
        encode(arguments.plan, arguments.configfile)
    else:
        run(
            arguments.plan,
            arguments.json,
            arguments.recipes,
            arguments.batch,
            arguments.budget,
            arguments.captions,
            arguments.save,
        )


if __name__ == "__main__":
    main()
