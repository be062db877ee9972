"""Activation configurations against each other on the demo model, without Snakemake.

    .venv/bin/python benchmarks/recipes.py encode plan.safetensors \
        --configfile config/demo-activations.yaml
    .venv/bin/python benchmarks/activations.py plan.safetensors --json activations.json \
        --rows "full:*" "balanced:a6*" "best:a8*,t65*" "best:a8group,a8tokenfine@20,50"

Does what the rules of both tracks do, with the same library calls, in one process: draws the
calibration trajectories (50 steps), measures the linears' inputs, makes the configurations,
quantizes the weights, and draws the held-out captions with simulated activation quantization:
|z - z_full|^2 / |z_full|^2 of the final latents and PSNR of the pictures, guidance 4, the noise of
caption i from seed 42 + i, against full precision at the same number of steps. A row is
"recipe:patterns@steps": the recipe (`full`: no weights are quantized), names of configurations, and
sampling steps (28). Ratios are medians over the captions against the same weights with
full-precision activations, with paired 95 % bootstrap intervals; the first 32 captions, and all.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from in_process import (
    CFG_WEIGHT,
    FIRST,
    PLAN,
    SEED,
    STEPS,
    cache_blocks,
    conditioning_of,
    load_weights,
    paired,
    quantize,
    quantized_model,
    sample,
)

from ditquant import metrics
from ditquant.activations.clip_errors import ClipErrors, added
from ditquant.activations.clip_search import measure_clip_errors
from ditquant.activations.configs import clip_configs, make_config, tier_configs
from ditquant.activations.input_statistics import Statistics, merge
from ditquant.activations.observe import measure_image
from ditquant.activations.quant_config import parse_quant_config
from ditquant.activations.scheme import ActivationScheme
from ditquant.activations.simulate import simulated_activations
from ditquant.activations.tiers import input_gains
from ditquant.activations.velocity_errors import Sensitivity, average
from ditquant.activations.velocity_sensitivity import measure_sensitivity
from ditquant.artifacts import load_metadata, load_tensors
from ditquant.backend import describe_device, mx, to_numpy
from ditquant.models.load import load_vae_decoder
from ditquant.models.spec import ModelSpec, read_spec
from ditquant.network.blocks import Network
from ditquant.network.calibration import Trajectory
from ditquant.network.diffusionkit import load_network
from ditquant.network.sampling import (
    BeforeStep,
    decode,
    initial_latents,
    latent_shape,
    leave_alone,
    sample_euler,
    sigma_schedule,
    strided_steps,
)
from ditquant.planning.settings import has_own_activations


def parse_row(text: str) -> tuple[str, list[str], list[int]]:
    """("best", ["a8*", "t65*"], [20, 50]) of "best:a8*,t65*@20,50"."""
    recipe, _, rest = text.partition(":")
    patterns, _, steps = rest.partition("@")
    return recipe, patterns.split(","), [int(step) for step in (steps or str(STEPS)).split(",")]


class Captions:
    """The held-out captions: drawn by a model at some steps, and compared with full precision."""

    def __init__(self, spec: ModelSpec, tensors: dict[str, mx.array], batch: int):
        self._spec, self._tensors, self._batch = spec, tensors, batch
        self._decoder = load_vae_decoder(spec, mx.float32)
        self._full = load_network(spec, mx.float32)
        self._references: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def draw(self, model: Network, steps: int, before: BeforeStep) -> tuple[np.ndarray, np.ndarray]:
        """Final latents (captions, h, w, c) and pictures (captions, H, W, 3)."""
        sigmas, shape = sigma_schedule(steps, self._spec.shift), latent_shape(self._spec.image_size)
        count, latents, pictures = len(self._tensors["evaluation.tokens"]), [], []
        for start in range(0, count, self._batch):
            rows = list(range(start, min(start + self._batch, count)))
            noise = mx.concatenate([initial_latents(SEED + row, shape, sigmas[0]) for row in rows])
            given = conditioning_of(self._tensors, "evaluation", rows)
            final = sample_euler(
                model, noise, sigmas, given.tokens, given.pooled, CFG_WEIGHT, before_step=before
            )
            latents.append(to_numpy(final).astype(np.float64))
            pictures.append(
                decode(self._decoder, final, self._spec.latent_scale, self._spec.latent_shift)
            )
        return np.concatenate(latents), np.concatenate(pictures)

    def compare(
        self, model: Network, steps: int, before: BeforeStep = leave_alone
    ) -> tuple[np.ndarray, np.ndarray]:
        """(captions,) relative errors of the final latents and (captions,) PSNR."""
        if steps not in self._references:
            self._references[steps] = self.draw(self._full, steps, None)
        reference, shown = self._references[steps]
        latents, pictures = self.draw(model, steps, before)
        errors = [metrics.relative_error(*pair) for pair in zip(latents, reference, strict=True)]
        psnr = [metrics.psnr(*pair) for pair in zip(pictures, shown, strict=True)]
        return np.array(errors), np.array(psnr)


def trajectories(
    spec: ModelSpec, tensors: dict[str, mx.array], plan: dict[str, Any], images: int
) -> Iterator[Trajectory]:
    """The full-precision paths of the first calibration images."""
    steps = plan["num_steps"]
    first = {
        name: tensor[:images] if name.startswith("calibration") else tensor
        for name, tensor in tensors.items()
    }
    final, path = sample(
        load_network(spec, mx.float32), spec, first, "calibration", steps, plan["seed"], 64
    )
    sigmas, latents = sigma_schedule(steps, spec.shift), mx.stack([*path, final])
    for image in range(len(final)):
        yield Trajectory(
            latents=latents[:, image],
            sigmas=sigmas,
            timesteps=(sigmas[:-1] * 1000).astype(mx.float32),
            conditioning=conditioning_of(first, "calibration", [image]),
            cfg_weight=CFG_WEIGHT,
            prompt="",
        )


def measured(
    model: Network, spec: ModelSpec, tensors: dict[str, mx.array], plan: dict[str, Any]
) -> Statistics:
    """Statistics of a model's inputs along the full-precision trajectories, as rules make them."""
    asked = plan["activations"]
    chosen = strided_steps(plan["num_steps"], asked["stride"])
    paths = trajectories(spec, tensors, plan, asked["num_images"])
    return merge(
        [
            measure_image(model, path, chosen, spec.name, f"{image:04d}")
            for image, path in enumerate(paths)
        ]
    )


def summary(
    errors: np.ndarray, psnr: np.ndarray, base: tuple[np.ndarray, np.ndarray] | None
) -> dict[str, Any]:
    """Of some captions; ratio and decibels against the same weights without it, where given."""
    found: dict[str, Any] = {
        "captions": len(errors),
        "median": float(np.median(errors)),
        "psnr_median": float(np.median(psnr)),
    }
    return found if base is None else found | paired(errors, base[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plan", type=Path)
    parser.add_argument("--rows", nargs="+", default=["full:*"], help="recipe:patterns@steps")
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--weights", type=Path, help="folder of `recipes.py run --save`; others are quantized here"
    )
    parser.add_argument("--batch", type=int, default=64, help="captions drawn at once")
    parser.add_argument("--captions", type=int, default=256, help="held-out ones, from the first")
    arguments = parser.parse_args()
    started = time.perf_counter()
    tensors = load_tensors(arguments.plan, PLAN)
    plan = json.loads(load_metadata(arguments.plan, PLAN)["plan"])
    tensors |= {
        name: tensor[: arguments.captions]
        for name, tensor in tensors.items()
        if name.startswith("evaluation")
    }
    spec = read_spec("demo")
    captions = Captions(spec, tensors, arguments.batch)
    document: dict[str, Any] = {
        "command": "benchmarks/activations.py", "device": describe_device(), "plan": plan,
        "rows": {},
    }  # fmt: skip
    print(f"{document['device']}; {len(tensors['evaluation.tokens'])} captions", flush=True)
    full = load_network(spec, mx.float32)
    shared = measured(full, spec, tensors, plan)
    print(f"measured {len(shared.images)} images, {time.perf_counter() - started:.0f} s")
    models: dict[str, tuple[Network, Statistics]] = {"full": (full, shared)}
    bases: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}
    sensitivities: dict[str, Sensitivity] = {}

    def opened(recipe: str, scratch: Path) -> tuple[Network, Statistics]:
        if recipe not in models:
            options = plan["recipes"][recipe]
            stored = arguments.weights and arguments.weights / f"{recipe}.safetensors"
            if stored and stored.is_file():
                packed, parameters = load_weights(stored)
            else:
                files = sorted(scratch.glob("*.safetensors"))
                if not files:
                    files = cache_blocks(scratch, full, spec, tensors, plan, arguments.batch)
                packed, parameters, _ = quantize(
                    scratch, spec, files, options, plan["seed"], shared
                )
            model, _ = quantized_model(spec, options, packed, parameters)
            own = has_own_activations(options)
            models[recipe] = model, measured(model, spec, tensors, plan) if own else shared
        return models[recipe]

    def clips_of(recipe: str, asked: ActivationScheme) -> ClipErrors | None:
        if asked.clips is None:
            return None
        model, statistics = models[recipe]
        first, count = plan["activations"]["num_images"], asked.clips.images
        held_out = list(trajectories(spec, tensors, plan, first + count))[first:]
        chosen = strided_steps(plan["num_steps"], asked.clips.stride)
        configs = clip_configs(statistics, asked)
        return added(
            [
                measure_clip_errors(model, image, f"{first + index:04d}", chosen, configs)
                for index, image in enumerate(held_out)
            ]
        )

    def sensitivity_of(recipe: str, asked: ActivationScheme) -> Sensitivity:
        key = json.dumps([recipe, asked.params], sort_keys=True)
        if key not in sensitivities:
            model, statistics = models[recipe]
            tiers = asked.tiers
            chosen = strided_steps(plan["num_steps"], tiers.stride)
            configs, follows = tier_configs(statistics, asked), tiers.weighting == "latents"
            sensitivities[key] = average(
                [
                    measure_sensitivity(model, image, chosen, configs, follows)
                    for image in trajectories(spec, tensors, plan, tiers.images)
                ]
            )
        return sensitivities[key]

    def configured(recipe: str, asked: ActivationScheme) -> dict[str, Any]:
        model, statistics = models[recipe]
        # Recipes that have none of their own share what was measured of the full-precision model.
        own = recipe if statistics is not shared else "full"
        gains, sensitivity = partial(input_gains, model), partial(sensitivity_of, own, asked)
        return make_config(statistics, asked, gains, sensitivity, clips=clips_of(own, asked))

    def report(recipe: str, name: str, steps: int, config: dict[str, Any] | None) -> None:
        model, _ = models[recipe]
        if config is None:
            errors, psnr = captions.compare(model, steps)
            bases[recipe, steps] = errors, psnr
        else:
            with simulated_activations(model, parse_quant_config(config, name)) as before:
                errors, psnr = captions.compare(model, steps, before)
        base = bases[recipe, steps] if config and recipe != "full" else None
        first = None if base is None else (base[0][:FIRST], base[1][:FIRST])
        row = {
            "first": summary(errors[:FIRST], psnr[:FIRST], first),
            "all": summary(errors, psnr, base),
            "average_bits": (config or {}).get("summary", {}).get("average_bits"),
            "errors": [float(f"{error:.6g}") for error in errors],
            "psnr": [float(f"{value:.6g}") for value in psnr],
        }
        document["rows"][f"{recipe}-{name}@{steps}"] = row
        text = [f"{recipe}-{name}@{steps}".ljust(28)]
        for part in (row["first"], row["all"]):
            ratio = ""
            if "ratio" in part:
                low, high = part["interval"]
                ratio = f" {part['ratio']:.3f} x ({low:.2f} to {high:.2f})"
            text.append(f"{part['median']:.5f} {part['psnr_median']:.2f} dB{ratio}")
        bits = "" if row["average_bits"] is None else f" {row['average_bits']:.2f} bits"
        print(" | ".join(text) + f"{bits}  {time.perf_counter() - started:.0f} s", flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(document, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as scratch:
        for recipe, patterns, all_steps in map(parse_row, arguments.rows):
            opened(recipe, Path(scratch))
            for steps in all_steps:
                if (recipe, steps) not in bases:
                    report(recipe, "weights", steps, None)
                for name, params in plan["activations"]["schemes"].items():
                    if any(fnmatchcase(name, pattern) for pattern in patterns):
                        config = configured(recipe, ActivationScheme.from_params(params))
                        report(recipe, name, steps, config)


if __name__ == "__main__":
    main()
