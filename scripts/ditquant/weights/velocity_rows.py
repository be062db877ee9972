"""The targets of the tuning: guided velocities along calibration trajectories.

A row is one image at one step: image by image, steps in order. Its input is the latent of the
stored trajectory, which the network reads once with the prompt and once with the negative prompt;
its target the guided velocity that the full-precision model has there,

    v = v_negative + w (v_prompt - v_negative).

Guidance subtracts what both halves of the pair have in common, so their errors count by what is
left of them: at w = 4 equal errors of both weigh 1 and unrelated ones 4^2 + 3^2 = 25.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..backend import mx
from ..finite import check_finite
from ..network.blocks import Network
from ..network.calibration import Trajectory
from ..network.sampling import strided_steps
from ..progress import ticking
from .block_io import in_parts

ROWS_AT_ONCE = 8


@dataclass(frozen=True)
class VelocityRows:
    """Inputs and targets of the network, rows of all images in image order.

    Attributes:
        latents: (rows, h, w, channels) float32.
        timesteps: (rows,) in the model's dtype.
        tokens: (images, sides, tokens, channels), the prompt and then the negative prompt; one side
            where the trajectories are unguided.
        pooled: (images, sides, channels).
        image_of: (rows,) the image of a row.
        guidance: w.
        targets: (rows, h, w, channels) float32, the full-precision guided velocity.
        energies: (rows,) float32 mean squares of the targets.
        rows_per_image: how many rows come from each image.
    """

    latents: mx.array
    timesteps: mx.array
    tokens: mx.array
    pooled: mx.array
    image_of: np.ndarray
    guidance: float
    targets: mx.array
    energies: mx.array
    rows_per_image: tuple[int, ...]


def enter(model: Network, rows: VelocityRows, index: np.ndarray) -> tuple[mx.array, mx.array]:
    """Sets the modulation of some rows; returns latents and texts as the model takes them.

    The model sees all prompts of the rows, and then all their negative prompts.
    """
    points, images = mx.array(index), mx.array(rows.image_of[index])
    sides = rows.tokens.shape[1]

    def by_side(array: mx.array) -> mx.array:
        return mx.concatenate([array[images, side] for side in range(sides)])

    timesteps = mx.concatenate([rows.timesteps[points]] * sides)
    model.modulate(model.modulation_inputs(by_side(rows.pooled), timesteps))
    tokens = by_side(rows.tokens)
    latents = mx.concatenate([rows.latents[points]] * sides)
    return latents.astype(tokens.dtype), tokens


def guided(rows: VelocityRows, output: mx.array) -> mx.array:
    """The guided velocity, float32, of what the model gave for some rows after `enter`."""
    output = output.astype(mx.float32)
    if rows.tokens.shape[1] == 1:
        return output
    text, negative = output.split(2)
    return negative + rows.guidance * (text - negative)


def velocity_rows(model: Network, trajectories: Sequence[Trajectory], stride: int) -> VelocityRows:
    """Rows of every `stride`-th step of the trajectories, with the model's velocities as targets.

    Args:
        model: the full-precision MMDiT.
        trajectories: with the same guidance.

    Raises:
        UserError: a velocity is NaN or infinite.
    """
    steps = mx.array(strided_steps(trajectories[0].num_steps, stride))
    count, images = steps.size, len(trajectories)
    rows = VelocityRows(
        latents=mx.concatenate([one.latents[steps] for one in trajectories]),
        timesteps=mx.concatenate([one.timesteps[steps] for one in trajectories]),
        tokens=mx.stack([one.conditioning.tokens for one in trajectories]),
        pooled=mx.stack([one.conditioning.pooled for one in trajectories]),
        image_of=np.repeat(np.arange(images), count),
        guidance=trajectories[0].cfg_weight,
        targets=mx.array([]),
        energies=mx.array([]),
        rows_per_image=(count,) * images,
    )
    parts = []
    with ticking("full-precision velocities", count * images) as tick:
        for index in in_parts(np.arange(count * images), ROWS_AT_ONCE):
            parts.append(guided(rows, model.forward(*enter(model, rows, index))))
            seen = sorted({f"{image:04d}" for image in rows.image_of[index]})
            check_finite({"the full-precision velocity": parts[-1]}, f"of image {', '.join(seen)}")
            for _ in index:
                tick()
    targets = mx.concatenate(parts)
    energies = mx.mean(targets**2, axis=(1, 2, 3))
    mx.eval(targets, energies, rows.latents, rows.tokens)
    return replace(rows, targets=targets, energies=mx.maximum(energies, 1e-12))


def row_errors(rows: VelocityRows, output: mx.array, index: mx.array) -> mx.array:
    """(n,) float32: |v_q - v|^2 / |v|^2 of each of some rows, given the network's output there."""
    difference = guided(rows, output) - rows.targets[index]
    return mx.mean(difference * difference, axis=(1, 2, 3)) / rows.energies[index]
