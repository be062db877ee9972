"""Both tracks in one process: what the benchmarks of recipes and activations have in common.

Does what the workflow's rules do, with the same library calls: a plan is encoded (the resolved
configuration and the conditioning of all captions, so that a machine without the text encoder can
go on), calibration trajectories are drawn in batches, block inputs and outputs are cached, and
blocks are quantized and tuned.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "scripts"))

from ditquant.weights.recipes import quantize_block, recipe_grid  # noqa: E402

from ditquant import metrics  # noqa: E402
from ditquant.activations.input_statistics import Statistics  # noqa: E402
from ditquant.artifacts import load_metadata, load_tensors, save_tensors  # noqa: E402
from ditquant.backend import describe_device, mx, nn  # noqa: E402
from ditquant.checkpoints.checkpoint import checkpoint_tensors, stored_sizes  # noqa: E402
from ditquant.models.load import load_mmdit  # noqa: E402
from ditquant.models.spec import ModelSpec, read_spec  # noqa: E402
from ditquant.network.blocks import all_linears  # noqa: E402
from ditquant.network.calibration import Conditioning, Trajectory, load_trajectory, save_trajectory  # noqa: E402
from ditquant.network.sampling import (  # noqa: E402
    Step,
    initial_latents,
    latent_shape,
    sample_euler,
    sigma_schedule,
)
from ditquant.planning.settings import is_tuned  # noqa: E402
from ditquant.weights.block_io import (  # noqa: E402
    BLOCK_IO,
    boundary_streams,
    cached_steps,
    join_steps,
    read_block,
)
from ditquant.weights.grids import Packed, dequantize  # noqa: E402
from ditquant.weights.other_linears import quantize_other_linears  # noqa: E402
from ditquant.weights.prefix import streams_after  # noqa: E402
from ditquant.weights.reconstruct import block_problem  # noqa: E402
from ditquant.weights.rotation import rotate  # noqa: E402
from ditquant.weights.tuning import tune_recipe  # noqa: E402

PLAN, CODES = "ditquant.benchmark_plan", "ditquant.benchmark_codes"

STEPS, CFG_WEIGHT, SEED = 28, 4.0, 42
FIRST = 32  # captions that are reported on their own
_PARTS = ("weight", "scales", "biases")


def _shown(configfile: Path) -> str:
    """Its path in the project; of a file elsewhere the name alone."""
    file = configfile.resolve()
    return str(file.relative_to(ROOT)) if file.is_relative_to(ROOT) else file.name


def device() -> str:
    """What computes, by its own name too."""
    try:
        name = mx.device_info().get("device_name", "unknown")
    except RuntimeError:
        name = "unknown"
    return f"{name}, {describe_device()}"


def read_configuration(files: Sequence[Path]) -> dict[str, Any]:
    """config/config.yaml with others laid over it, and the schema's defaults."""
    import yaml
    from snakemake.utils import update_config

    from ditquant.planning.configuration import complete

    config: dict[str, Any] = {}
    for file in (ROOT / "config" / "config.yaml", *files):
        update_config(config, yaml.safe_load(file.read_text("utf-8")))
    complete(config, yaml.safe_load((ROOT / "config" / "schema.yaml").read_text("utf-8")))
    return config


def encode(path: Path, configfile: Path) -> None:
    """Writes the plan: resolved recipes, and the conditioning of all captions."""
    import yaml

    from ditquant.models.text import encode_texts
    from ditquant.planning.prompt_files import read_prompts
    from ditquant.planning.settings import recipe_options
    from ditquant.planning.variant_names import activation_configs

    config = read_configuration([configfile])
    recipes = yaml.safe_load(configfile.read_text("utf-8"))["recipes"]
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
        "configuration": _shown(configfile),
        "activations": {
            "configs": activation_configs(config),
            "num_images": config["activations"]["num_images"],
            "stride": config["activations"]["stride"],
        },
    }
    save_tensors(path, tensors, PLAN, {"plan": plan})


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
        save_tensors(files[-1], {**streams, "sigmas": sigmas[mx.array(cached)]}, BLOCK_IO, metadata)
    return files


def recipe_model(spec: ModelSpec, recipe: dict[str, Any]) -> nn.Module:
    """The full-precision model that a recipe quantizes."""
    model = load_mmdit(spec, mx.float32)
    rotate(model, recipe.get("rotation"))
    return model


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
            recipe_model(spec, recipe), block, data, recipe_grid(recipe), recipe["holdout"]
        )
        result = quantize_block(problem, recipe, seed, statistics)
        packed |= result.packed
        parameters |= result.parameters
        documents.append({**result.document, "seconds": time.perf_counter() - started})
        if chained and index + 1 < len(spec.block_names):
            following = spec.block_names[index + 1]
            network = recipe_model(spec, recipe)
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
    model = recipe_model(spec, recipe)
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
    model = recipe_model(spec, recipe)
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
    save_tensors(path, tensors, CODES, {"sizes": sizes})


def load_weights(path: Path) -> tuple[dict[str, Packed], dict[str, mx.array]]:
    """Packed weights and balanced parameters that `save_weights` wrote."""
    tensors, sizes = load_tensors(path, CODES), json.loads(load_metadata(path, CODES)["sizes"])
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
