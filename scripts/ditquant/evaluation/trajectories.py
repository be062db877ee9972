"""What a variant does on captions: where it ends, how it drifts, and how it errs on the way.

Two measurements along the schedule, at a few steps (`kept_steps`). Free-running: the variant's
own latents against the reference's at the same step, errors add up. Teacher-forced: the variant's
velocity at the reference's latents, the error that one step adds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ..artifacts import load_tensors, save_tensors
from ..backend import mx, nn, peak_memory_bytes, reset_peak_memory, to_numpy
from ..finite import check_finite
from ..models.spec import ModelSpec
from ..network.blocks import Network
from ..network.calibration import Conditioning, Prompt, load_conditioning
from ..network.sampling import (
    BeforeStep,
    Step,
    decode,
    initial_latents,
    latent_shape,
    sample_euler,
    strided_steps,
    velocity_at,
)
from ..progress import ticking

# Velocities are compared at every fourth step: 7 of 28 show the curve and cost a quarter more.
VELOCITY_STRIDE = 4

REFERENCE = "ditquant.reference"

# Evaluation starts from other noise than calibration, whose seeds are seed + image.
NOISE_OFFSET = 10_000


def kept_steps(num_steps: int) -> list[int]:
    """0-based steps at which latents and velocities are kept."""
    return strided_steps(num_steps, VELOCITY_STRIDE)


@dataclass(frozen=True)
class Drawn:
    """One batch, drawn by one model.

    Attributes:
        final: final latents (N, h, w, channels).
        latents, velocities: at the measured steps, (N, steps, h, w, channels).
        step_seconds: wall time of every step, for the whole batch.
    """

    final: mx.array
    latents: mx.array
    velocities: mx.array
    step_seconds: list[float]


def draw(
    network: Network,
    before_step: BeforeStep,
    start: mx.array,
    sigmas: mx.array,
    conditioning: Conditioning,
    cfg_weight: float,
    tick: Callable[[], None],
) -> Drawn:
    """Samples a batch freely from `start` (N, h, w, channels); see `sampling.sample_euler`.

    `tick` is called after every step, for a progress bar.
    """
    kept = set(kept_steps(len(sigmas) - 1))
    latents, velocities, clock = [], [], []

    def timed_before_step(index: int, sigma: float) -> None:
        clock.append(time.perf_counter())
        before_step(index, sigma)

    def observe(step: Step) -> None:
        if step.index in kept:
            latents.append(step.latents)
            velocities.append(step.velocity)
        tick()

    final = sample_euler(
        network,
        start,
        sigmas,
        conditioning.tokens,
        conditioning.pooled,
        cfg_weight,
        observe,
        timed_before_step,
    )
    clock.append(time.perf_counter())
    return Drawn(
        final=final,
        latents=mx.stack(latents, axis=1),
        velocities=mx.stack(velocities, axis=1),
        step_seconds=np.diff(clock).tolist(),
    )


def teacher_forced(
    network: Network,
    before_step: BeforeStep,
    latents: mx.array,
    sigmas: mx.array,
    conditioning: Conditioning,
    cfg_weight: float,
    tick: Callable[[], None],
) -> mx.array:
    """Velocities (N, steps, h, w, channels) of a model at given latents of the measured steps.

    Args:
        latents: (N, steps, h, w, channels) of the reference.
        sigmas: the whole schedule.

    Raises:
        UserError: a velocity is NaN or infinite.
    """
    timesteps = network.timesteps(sigmas, conditioning.tokens.dtype)
    velocities = []
    for column, index in enumerate(kept_steps(len(sigmas) - 1)):
        before_step(index, sigmas[index].item())
        velocity = velocity_at(
            network,
            latents[:, column],
            sigmas[index],
            timesteps[index],
            conditioning.tokens,
            conditioning.pooled,
            cfg_weight,
        )
        check_finite({"the velocity": velocity}, f"at the reference's latents of step {index + 1}")
        velocities.append(velocity)
        tick()
    return mx.stack(velocities, axis=1)


@dataclass(frozen=True)
class Setting:
    """What is drawn and how, the same for every variant.

    Attributes:
        captions: in order; caption i starts from noise `seeds[i]`.
        shards, rows: where each caption's conditioning is.
        image_size: (height, width) in pixels.
        batch_size: captions that are drawn at once.
    """

    captions: Sequence[str]
    shards: Sequence[str | Path]
    rows: Sequence[int]
    seeds: Sequence[int]
    num_steps: int
    cfg_weight: float
    image_size: tuple[int, int]
    batch_size: int

    @property
    def batches(self) -> list[slice]:
        starts = range(0, len(self.captions), self.batch_size)
        return [slice(start, start + self.batch_size) for start in starts]


def read_setting(plan: Mapping[str, Any], files: Sequence[str], shards: Sequence[str]) -> Setting:
    """The setting of a job's parameters.

    Args:
        plan: prompts (each with text and row), seed, num_steps, cfg_weight, image_size, batch_size.
        files: with the prompts' conditioning, each once.
        shards: name of each prompt's file.
    """
    prompts = [Prompt.from_params(prompt) for prompt in plan["prompts"]]
    by_name = {Path(file).name: file for file in files}
    height, width = plan["image_size"]
    return Setting(
        captions=[prompt.text for prompt in prompts],
        shards=[by_name[shard] for shard in shards],
        rows=[prompt.row for prompt in prompts],
        seeds=[plan["seed"] + NOISE_OFFSET + index for index in range(len(prompts))],
        num_steps=plan["num_steps"],
        cfg_weight=plan["cfg_weight"],
        image_size=(height, width),
        batch_size=plan["batch_size"],
    )


@dataclass(frozen=True)
class Run:
    """All captions drawn by one model, as host arrays.

    Attributes:
        final: (captions, h, w, channels) float32.
        latents: (captions, steps, h, w, channels) float32, at `kept_steps`.
        velocities: of the same shape; of a variant, at the reference's latents (teacher-forced).
        images: (captions, H, W, 3) uint8.
        sigmas: (num_steps + 1,) float32.
    """

    final: np.ndarray
    latents: np.ndarray
    velocities: np.ndarray
    images: np.ndarray
    sigmas: np.ndarray


def run_captions(
    network: Network,
    before_step: BeforeStep,
    decoder: nn.Module,
    spec: ModelSpec,
    setting: Setting,
    dtype: mx.Dtype,
    forced_at: np.ndarray | None = None,
) -> tuple[Run, dict[str, float | int]]:
    """Draws all captions and measures them on the way.

    Args:
        dtype: of the network's activations.
        forced_at: the reference's latents at the measured steps, where velocities are taken; None
            for the reference itself, whose own velocities are kept.

    Returns:
        The run, and what it took: `step_seconds`, the median time of a sampling step of one caption
        (guided: both halves), and `peak_bytes`, the most memory that MLX held.
    """
    reset_peak_memory()
    sigmas = network.sigmas(setting.num_steps)
    shape = latent_shape(setting.image_size)
    step_seconds: list[float] = []
    columns: dict[str, list[np.ndarray]] = {
        name: [] for name in ("final", "latents", "velocities", "images")
    }
    forwards = setting.num_steps
    if forced_at is not None:
        forwards += len(kept_steps(setting.num_steps))
    with ticking("steps of batches", forwards * len(setting.batches)) as tick:
        for rows in setting.batches:
            conditioning = load_conditioning(
                setting.shards[rows], setting.rows[rows], setting.cfg_weight > 0, dtype
            )
            start = mx.concatenate(
                [initial_latents(seed, shape, sigmas[0]) for seed in setting.seeds[rows]]
            )
            how = (sigmas, conditioning, setting.cfg_weight, tick)
            drawn = draw(network, before_step, start, *how)
            step_seconds += [seconds / len(start) for seconds in drawn.step_seconds]
            velocities = drawn.velocities
            if forced_at is not None:
                velocities = teacher_forced(network, before_step, mx.array(forced_at[rows]), *how)
            images = decode(decoder, drawn.final, spec.latent_scale, spec.latent_shift)
            columns["final"].append(to_numpy(drawn.final))
            columns["latents"].append(to_numpy(drawn.latents))
            columns["velocities"].append(to_numpy(velocities))
            columns["images"].append(images)
    arrays = {name: np.concatenate(parts) for name, parts in columns.items()}
    took = {"step_seconds": float(np.median(step_seconds)), "peak_bytes": peak_memory_bytes()}
    return Run(**arrays, sigmas=to_numpy(sigmas)), took


def load_run(path: str | Path) -> Run:
    """Reads what `save_run` wrote."""
    tensors = load_tensors(path, REFERENCE)
    return Run(**{field.name: to_numpy(tensors[field.name]) for field in fields(Run)})


def save_run(path: str | Path, run: Run, metadata: Mapping[str, Any]) -> None:
    tensors = {field.name: mx.array(getattr(run, field.name)) for field in fields(Run)}
    save_tensors(path, tensors, REFERENCE, metadata)


def count_parameters(network: Network) -> int:
    return sum(value.size for _, value in nn.utils.tree_flatten(network.module.parameters()))
