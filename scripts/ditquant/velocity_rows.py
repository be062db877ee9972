"""What the whole network should give back: velocities along calibration trajectories.

A row is one half of a guided pair (prompt, or negative prompt) of one image at one step, as in
`block_io`: image by image, step-major. Its input is the latent of the stored trajectory, its target
the velocity that the full-precision model has there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .backend import mx, nn
from .block_io import cached_steps
from .blocks import ANY_TIMESTEP
from .calibration import Trajectory
from .progress import ticking
from .sampling import modulate, modulation_inputs

_ROWS_AT_ONCE = 16


@dataclass(frozen=True)
class VelocityRows:
    """Inputs and targets of the network, rows of all images in image order.

    Attributes:
        latents: (points, h, w, channels) float32, a point being an image at a step.
        timesteps: (points,) in the model's dtype.
        tokens: (texts, tokens, channels), the prompt and then the negative prompt of each image.
        pooled: (texts, channels).
        point_of, text_of: (rows,) the point and the text that a row reads.
        targets: (rows, h, w, channels), the full-precision velocity in the model's dtype.
        energies: (rows,) float32 mean squares of the targets.
        rows_per_image: how many rows come from each image.
    """

    latents: mx.array
    timesteps: mx.array
    tokens: mx.array
    pooled: mx.array
    point_of: np.ndarray
    text_of: np.ndarray
    targets: mx.array
    energies: mx.array
    rows_per_image: tuple[int, ...]


def enter(model: nn.Module, rows: VelocityRows, index: np.ndarray) -> tuple[mx.array, mx.array]:
    """Sets the modulation of some rows; returns their latents and texts as the model takes them."""
    points, texts = mx.array(rows.point_of[index]), mx.array(rows.text_of[index])
    tokens = rows.tokens[texts]
    modulate(model, modulation_inputs(model, rows.pooled[texts], rows.timesteps[points]))
    return rows.latents[points].astype(tokens.dtype), mx.expand_dims(tokens, 2)


def velocity_rows(
    model: nn.Module, trajectories: Sequence[Trajectory], stride: int
) -> VelocityRows:
    """Rows of every `stride`-th step of the trajectories, with the model's velocities as targets.

    Args:
        model: the full-precision MMDiT.
    """
    steps = mx.array(cached_steps(trajectories[0].num_steps, stride))
    count, images = steps.size, len(trajectories)
    sides = trajectories[0].conditioning.tokens.shape[0]
    points, texts = np.arange(images * count), np.arange(images * sides)
    rows = VelocityRows(
        latents=mx.concatenate([one.latents[steps] for one in trajectories]),
        timesteps=mx.concatenate([one.timesteps[steps] for one in trajectories]),
        tokens=mx.concatenate([one.conditioning.tokens for one in trajectories]),
        pooled=mx.concatenate([one.conditioning.pooled for one in trajectories]),
        point_of=np.repeat(points, sides),
        text_of=np.repeat(texts.reshape(images, 1, sides), count, axis=1).reshape(-1),
        targets=mx.array([]),
        energies=mx.array([]),
        rows_per_image=(count * sides,) * images,
    )
    parts = []
    with ticking("full-precision velocities", len(points) * sides) as tick:
        for start in range(0, len(rows.point_of), _ROWS_AT_ONCE):
            index = np.arange(start, min(start + _ROWS_AT_ONCE, len(rows.point_of)))
            parts.append(model(*enter(model, rows, index), ANY_TIMESTEP))
            mx.eval(parts[-1])
            for _ in index:
                tick()
    targets = mx.concatenate(parts)
    energies = mx.mean(targets.astype(mx.float32) ** 2, axis=(1, 2, 3))
    mx.eval(targets, energies, rows.latents, rows.tokens)
    return VelocityRows(
        **{**vars(rows), "targets": targets, "energies": mx.maximum(energies, 1e-12)}
    )
