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
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "scripts"))

from ditquant import metrics  # noqa: E402
from ditquant.activation_statistics import Statistics  # noqa: E402
from ditquant.artifacts import load_metadata, load_tensors, save_tensors  # noqa: E402
from ditquant.backend import describe_device, mx, nn, to_numpy  # noqa: E402
from ditquant.block_io import boundary_streams, cached_steps, join_steps, read_block  # noqa: E402
from ditquant.blocks import all_linears  # noqa: E402
from ditquant.calibration import (  # noqa: E402
    Conditioning,
    Trajectory,
    load_trajectory,
    save_trajectory,
)
from ditquant.checkpoint import checkpoint_tensors, stored_sizes  # noqa: E402
from ditquant.grids import Packed, dequantize  # noqa: E402
from ditquant.models.load import load_mmdit, load_vae_decoder  # noqa: E402
from ditquant.models.spec import ModelSpec, read_spec  # noqa: E402
from ditquant.other_linears import quantize_other_linears  # noqa: E402
from ditquant.prefix import streams_after  # noqa: E402
from ditquant.recipes import quantize_block, recipe_grid  # noqa: E402
from ditquant.reconstruct import block_problem  # noqa: E402
from ditquant.sampling import (  # noqa: E402
    Step,
    decode,
    initial_latents,
    latent_shape,
    sample_euler,
    sigma_schedule,
)
from ditquant.settings import block_options, is_tuned  # noqa: E402
from ditquant.tuning import tune_recipe  # noqa: E402

STEPS, CFG_WEIGHT, SEED = 28, 4.0, 42
_FIRST = 32  # captions that are reported on their own
_PARTS = ("weight", "scales", "biases")


def encode(path: Path, configfile: Path) -> None:
    """Writes the plan: resolved recipes, and the conditioning of all captions."""
    import yaml
    from snakemake.utils import update_config, validate

    from ditquant.models.text import encode_texts
    from ditquant.settings import read_prompts, recipe_options
    from ditquant.variant_names import activation_configs

    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text("utf-8"))
    recipes = yaml.safe_load(configfile.read_text("utf-8"))["recipes"]
    update_config(config, yaml.safe_load(configfile.read_text("utf-8")))
    validate(config, str(ROOT / "config" / "schema.yaml"))
    prompts = {
        name: read_prompts(ROOT / config["prompts"][name], name)
        for name in ("calibration", "evaluation")
    }
    prompts["calibration"] = prompts["calibration"][: config["weights"]["num_images"]]
    tensors = {}
    for name, texts in {**prompts, "negative": [""]}.items():
        tokens, pooled = encode_texts(read_spec("demo"), texts, mx.float32, use_t5=False)
        tensors |= {f"{name}.tokens": tokens, f"{name}.pooled": pooled}
    plan = {
        "recipes": {name: recipe_options(config["recipes"][name]) for name in recipes},
        "order": sorted(recipes, key=lambda name: config["recipes"][name]["rounding"] != "rtn"),
        "seed": config["seed"],
        "num_steps": config["num_steps"],
        "stride": config["weights"]["stride"],
        "configuration": os.path.relpath(configfile, ROOT),
        "activations": {
            "configs": activation_configs(config),
            "num_images": config["activations"]["num_images"],
            "stride": config["activations"]["stride"],
        },
    }
    save_tensors(path, tensors, {"plan": plan})


def conditioning_of(tensors: dict[str, mx.array], name: str, rows: list[int]) -> Conditioning:
    """Of some captions, texts and then negative texts."""
    index, negative = mx.array(rows), mx.array([0] * len(rows))
    parts = (
        mx.concatenate([tensors[f"{name}.{kind}"][index], tensors[f"negative.{kind}"][negative]])
        for kind in ("tokens", "pooled")
    )
    return Conditioning(*parts)


def sample(
    model: nn.Module,
    spec: ModelSpec,
    tensors: dict[str, mx.array],
    name: str,
    steps: int,
    seed: int,
    batch: int,
) -> tuple[mx.array, list[mx.array]]:
    """Final latents of all captions of a set, and the latents of every step before them."""
    count = len(tensors[f"{name}.tokens"])
    sigmas, shape = sigma_schedule(steps, spec.shift), latent_shape(spec.image_size)
    finals, paths = [], []
    for start in range(0, count, batch):
        rows = list(range(start, min(start + batch, count)))
        noise = mx.concatenate([initial_latents(seed + row, shape, sigmas[0]) for row in rows])
        given = conditioning_of(tensors, name, rows)
        latents: list[mx.array] = []

        def keep(step: Step, latents: list[mx.array] = latents) -> None:
            latents.append(step.latents)

        finals.append(
            sample_euler(model, noise, sigmas, given.tokens, given.pooled, CFG_WEIGHT, keep)
        )
        paths.append(mx.stack(latents))
    return mx.concatenate(finals), list(mx.concatenate(paths, axis=1))


def cache_blocks(
    folder: Path,
    model: nn.Module,
    spec: ModelSpec,
    tensors: dict[str, mx.array],
    plan: dict[str, Any],
    batch: int,
) -> list[Path]:
    """block_io files of all calibration captions, as rule cache_block_io writes them.

    Their trajectories go to files of the same names in a folder "calibration" below.
    """
    steps = plan["num_steps"]
    final, path = sample(model, spec, tensors, "calibration", steps, plan["seed"], batch)
    sigmas = sigma_schedule(steps, spec.shift)
    latents = mx.stack([*path, final])
    files = []
    for image in range(len(final)):
        trajectory = Trajectory(
            latents=latents[:, image],
            sigmas=sigmas,
            timesteps=(sigmas[:-1] * 1000).astype(mx.float32),
            conditioning=conditioning_of(tensors, "calibration", [image]),
            cfg_weight=CFG_WEIGHT,
            prompt="",
        )
        cached = cached_steps(steps, plan["stride"])
        streams = join_steps(boundary_streams(model, trajectory, step) for step in cached)
        metadata = {
            "latent_size": list(latents.shape[2:4]),
            "text_tokens": trajectory.conditioning.tokens.shape[1],
        }
        files.append(folder / f"{image:04d}.safetensors")
        (folder / "calibration").mkdir(exist_ok=True)
        save_trajectory(folder / "calibration" / files[-1].name, trajectory)
        save_tensors(files[-1], {**streams, "sigmas": sigmas[mx.array(cached)]}, metadata)
    return files


def quantize_blocks(
    folder: Path,
    spec: ModelSpec,
    files: list[Path],
    recipe: dict[str, Any],
    seed: int,
    statistics: Statistics | None = None,
) -> tuple[dict[str, Packed], dict[str, mx.array], list[dict[str, Any]]]:
    """All blocks by one recipe: packed weights, balanced parameters, and the blocks' documents.

    Args:
        statistics: of the activations, for recipes that balance by them.
    """
    packed: dict[str, Packed] = {}
    parameters: dict[str, mx.array] = {}
    documents = []
    prefix: tuple[mx.array, ...] | None = None
    chained = recipe.get("inputs", "full") != "full"
    for index, block in enumerate(spec.block_names):
        started = time.perf_counter()
        data = read_block(files, spec.block_names, block, prefix)
        problem = block_problem(
            load_mmdit(spec, mx.float32), block, data, recipe_grid(recipe), recipe["holdout"]
        )
        result = quantize_block(problem, recipe, seed, statistics)
        packed |= result.packed
        parameters |= result.parameters
        documents.append({**result.document, "seconds": time.perf_counter() - started})
        if chained and index + 1 < len(spec.block_names):
            following = spec.block_names[index + 1]
            network = load_mmdit(spec, mx.float32)
            streams = streams_after(
                network, block, following, data, result.packed, result.parameters
            )
            prefix = streams
    return packed, parameters, documents


def tune(
    folder: Path,
    spec: ModelSpec,
    files: list[Path],
    recipe: dict[str, Any],
    seed: int,
    packed: dict[str, Packed],
    parameters: dict[str, mx.array],
) -> tuple[dict[str, Packed], dict[str, Any] | None]:
    """A recipe's blocks tuned together, and the tuning's document, where the recipe asks for it."""
    if not is_tuned(recipe):
        return packed, None
    started = time.perf_counter()
    trajectories = [load_trajectory(folder / "calibration" / file.name) for file in files]
    model = load_mmdit(spec, mx.float32)
    tuned = tune_recipe(model, packed, parameters, trajectories, recipe, seed)
    return tuned.packed, {**tuned.document, "seconds": time.perf_counter() - started}


def quantize(
    folder: Path,
    spec: ModelSpec,
    files: list[Path],
    recipe: dict[str, Any],
    seed: int,
    statistics: Statistics | None = None,
) -> tuple[dict[str, Packed], dict[str, mx.array], list[dict[str, Any]]]:
    """`quantize_blocks`, and `tune` where the recipe asks for it."""
    packed, parameters, documents = quantize_blocks(folder, spec, files, recipe, seed, statistics)
    tuned, _ = tune(folder, spec, files, recipe, seed, packed, parameters)
    return tuned, parameters, documents


def quantized_model(
    spec: ModelSpec,
    recipe: dict[str, Any],
    packed: dict[str, Packed],
    parameters: dict[str, mx.array],
) -> tuple[nn.Module, dict[str, Any]]:
    """The demo model with a recipe's values, and the bytes of its checkpoint."""
    model = load_mmdit(spec, mx.float32)
    model.load_weights(list(parameters.items()), strict=False)
    others = quantize_other_linears(
        model, recipe["quantize"], recipe["other_bits"], recipe["group_size"]
    )
    everything = {**packed, **others.packed}
    sizes = stored_sizes(checkpoint_tensors(model, everything), everything)
    for linear in all_linears(model):
        if linear.name in packed:
            linear.module.weight = dequantize(packed[linear.name])
    modules = dict(model.named_modules())
    for path, one in others.packed.items():
        modules[path].weight = dequantize(one)
    return model, sizes


def save_weights(path: Path, packed: dict[str, Packed], parameters: dict[str, mx.array]) -> None:
    """What a recipe made of the blocks, for `load_weights`."""
    tensors = {f"parameters.{name}": array for name, array in parameters.items()}
    for name, one in packed.items():
        tensors |= {f"packed.{name}.{part}": getattr(one, part) for part in _PARTS}
    sizes = {name: [one.bits, one.group_size] for name, one in packed.items()}
    save_tensors(path, tensors, {"sizes": sizes})


def load_weights(path: Path) -> tuple[dict[str, Packed], dict[str, mx.array]]:
    """Packed weights and balanced parameters that `save_weights` wrote."""
    tensors, sizes = load_tensors(path), json.loads(load_metadata(path)["sizes"])
    packed = {
        name: Packed(*(tensors[f"packed.{name}.{part}"] for part in _PARTS), *size)
        for name, size in sizes.items()
    }
    start = "parameters."
    return packed, {
        name.removeprefix(start): array for name, array in tensors.items() if name.startswith(start)
    }


def paired(errors: np.ndarray, baseline: np.ndarray) -> dict[str, Any]:
    """Ratio of medians with its interval, and the ratio of geometric means."""
    ratio, low, high = metrics.paired_ratio(errors, baseline)
    return {
        "captions": len(errors),
        "median": float(np.median(errors)),
        "mean": float(errors.mean()),
        "ratio": ratio,
        "interval": [low, high],
        "geometric_ratio": math.exp(np.log(errors / baseline).mean()),
        "better_on": int(np.sum(errors < baseline)),
    }


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
    tensors, plan = load_tensors(path), json.loads(load_metadata(path)["plan"])
    tensors |= {name: tensor[:captions] for name, tensor in tensors.items() if "evaluation" in name}
    spec = read_spec("demo")
    model, decoder = load_mmdit(spec, mx.float32), load_vae_decoder(spec, mx.float32)
    document: dict[str, Any] = {
        "command": "benchmarks/recipes.py",
        "device": describe_device(),
        "steps": STEPS,
        "plan": plan,
        "recipes": {},
    }

    def draw(network: nn.Module) -> tuple[np.ndarray, np.ndarray]:
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
                "first": paired(errors[:_FIRST], baseline[:_FIRST]),
                "all": paired(errors, baseline),
                "psnr_median_first": float(np.median(psnr[:_FIRST])),
                "psnr_median": float(np.median(psnr)),
                "blocks": [
                    {
                        key: block[key]
                        for key in ("block", "kept", "hard_error", "binary_share", "seconds")
                    }
                    for block in blocks
                ],
                "tuning": tuning,
                "errors": errors.tolist(),
            }
            document["recipes"][name] = row
            ratios = [
                block["hard_error"]["result"]["held_out"] / block["hard_error"]["rtn"]["held_out"]
                for block in blocks
            ]
            velocity = ""
            if tuning:
                start, error = (tuning["error"][when] for when in ("start", "tuned"))
                velocity = f" velocity {start:.5f} to {error:.5f}, kept {tuning['kept']}"
            shares = [block["binary_share"] for block in blocks if block["binary_share"]]
            print(
                f"{name:18s} {took:5.0f} s  first {_FIRST}: {row['first']['ratio']:.3f} x, "
                f"{row['psnr_median_first']:.2f} dB | all: {row['all']['ratio']:.3f} x "
                f"({row['all']['interval'][0]:.2f} to {row['all']['interval'][1]:.2f}), geometric "
                f"{row['all']['geometric_ratio']:.3f}, {row['psnr_median']:.2f} dB | quantized "
                f"{sizes['quantized_ratio']:.4f} | blocks {np.round(ratios, 3).tolist()} "
                f"{[block['kept'] for block in blocks]} binary {min(shares, default=0):.4f}"
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
