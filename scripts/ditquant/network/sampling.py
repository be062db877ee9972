"""Sigma schedule, classifier-free guidance and the Euler sampler, without offloading.

Bit for bit DiffusionKit's `sample_euler` (Algorithm 2 of Karras et al. 2022, arXiv 2206.00364, on
a rectified flow), but stateless: modulation is computed at each step from the weights, which stay
where they are, and an observer sees every step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from mlx.utils import tree_flatten

from ..backend import mx, nn
from ..finite import check_finite
from .blocks import Network


@dataclass(frozen=True)
class Step:
    """What an observer sees of one step.

    Attributes:
        index: 0-based.
        sigma, timestep: scalars () of the schedule; timestep = 1000 sigma in the model's dtype.
        latents: x before the step, (N, h, w, channels).
        velocity: guided dx/dsigma, of the same shape.
    """

    index: int
    sigma: mx.array
    timestep: mx.array
    latents: mx.array
    velocity: mx.array


Observer = Callable[[Step], None]
# Called with (index, sigma) before each forward pass of a step.
BeforeStep = Callable[[int, float], None]


def leave_alone(index: int, sigma: float) -> None:
    """`BeforeStep` where nothing is done to activations."""


def sigma_schedule(num_steps: int, shift: float) -> mx.array:
    """(num_steps + 1,) float32 sigmas from 1 to 0, those of DiffusionKit's `get_sigmas`.

    sigma(t) = shift t / (1 + (shift - 1) t) at num_steps evenly spaced t from 1 to sigma_min.
    """

    def sigma(timestep: mx.array) -> mx.array:
        timestep = timestep / 1000.0
        if shift == 1.0:
            return timestep
        return shift * timestep / (1 + (shift - 1) * timestep)

    table = sigma(mx.arange(1, 1001, 1))
    start, end = (table[-1] * 1000).item(), (table[0] * 1000).item()
    timesteps = mx.linspace(start, end, num_steps)
    return mx.array([sigma(timestep) for timestep in timesteps] + [0.0])


def strided_steps(num_steps: int, stride: int) -> list[int]:
    """Every `stride`-th step from the first: 0, stride, 2 stride, ..."""
    return list(range(0, num_steps, stride))


def latent_shape(image_size: Sequence[int], channels: int = 16) -> tuple[int, int, int, int]:
    """(1, height / 8, width / 8, channels) for an image of (height, width) pixels."""
    height, width = image_size
    return (1, height // 8, width // 8, channels)


def initial_noise(seed: int, shape: tuple[int, int, int, int]) -> mx.array:
    """DiffusionKit's noise: numpy's legacy generator, drawn as (B, C, H, W); (B, H, W, C)."""
    batch, height, width, channels = shape
    noise = np.random.RandomState(seed).randn(batch, channels, height, width)
    return mx.array(noise).transpose(0, 2, 3, 1)


def initial_latents(seed: int, shape: tuple[int, int, int, int], sigma: mx.array) -> mx.array:
    """x at the first sigma: noise over DiffusionKit's empty latent (all 0.0609)."""
    empty = mx.ones(shape) * 0.0609
    return sigma * initial_noise(seed, shape) + (1.0 - sigma) * empty


def predict(
    network: Network,
    latents: mx.array,
    sigma: mx.array,
    timestep: mx.array,
    conditioning: mx.array,
    pooled: mx.array,
    cfg_weight: float,
) -> mx.array:
    """The guided denoised latents at one step, DiffusionKit's `CFGDenoiser`.

    Args:
        latents: (N, h, w, channels).
        sigma, timestep: scalars () of the schedule.
        conditioning: (2N, tokens, channels): the texts, then their negative texts; (N, ...) if
            `cfg_weight` is not positive. Its dtype is the activations' dtype.
        pooled: rows as in `conditioning`.
    """
    network.modulate(network.modulation_inputs(pooled, timestep))
    guided = cfg_weight > 0
    inputs = (mx.concatenate([latents] * 2, axis=0) if guided else latents).astype(
        conditioning.dtype
    )
    output = network.forward(inputs, conditioning)
    denoised = inputs - output * sigma.reshape(sigma.shape[:1] + (1,) * (output.ndim - 1))
    if not guided:
        return denoised
    text, negative = denoised.split(2)
    return negative + cfg_weight * (text - negative)


def velocity_at(
    network: Network,
    latents: mx.array,
    sigma: mx.array,
    timestep: mx.array,
    conditioning: mx.array,
    pooled: mx.array,
    cfg_weight: float,
) -> mx.array:
    """The guided velocity d = (x - denoised) / sigma that an Euler step follows; see `predict`."""
    denoised = predict(network, latents, sigma, timestep, conditioning, pooled, cfg_weight)
    return (latents - denoised) / sigma


def sample_euler(
    network: Network,
    latents: mx.array,
    sigmas: mx.array,
    conditioning: mx.array,
    pooled: mx.array,
    cfg_weight: float,
    observer: Observer | None = None,
    before_step: BeforeStep = leave_alone,
) -> mx.array:
    """Integrates from sigmas[0] to sigmas[-1] and returns the final latents, in the model's format.

    Args:
        latents: (N, h, w, channels), see `initial_latents`.
        sigmas: (steps + 1,), see `sigma_schedule`.
        conditioning, pooled, cfg_weight: see `predict`.
        observer: called after each step's velocity is known.
        before_step: simulated activation quantization looks its scales up by this sigma.

    Raises:
        UserError: the latents behind a step are NaN or infinite.
    """
    timesteps = network.timesteps(sigmas, conditioning.dtype)
    levels = sigmas.tolist()[:-1]
    for index, value in enumerate(levels):
        sigma, timestep = sigmas[index], timesteps[index]
        before_step(index, value)
        velocity = velocity_at(network, latents, sigma, timestep, conditioning, pooled, cfg_weight)
        if observer is not None:
            observer(Step(index, sigma, timestep, latents, velocity))
        latents = latents + velocity * (sigmas[index + 1] - sigma)
        where = f"behind step {index + 1} of {len(levels)} (sigma {value:.4g})"
        check_finite({"the latents": latents}, where)
    return latents


def to_vae(latents: mx.array, scale: float, shift: float) -> mx.array:
    """From the model's latent format to the VAE's: x / scale + shift."""
    return latents / scale + shift


def decode(decoder: nn.Module, latents: mx.array, scale: float, shift: float) -> np.ndarray:
    """Final latents (N, h, w, c) -> uint8 images (N, 8h, 8w, 3), truncated as DiffusionKit does.

    Raises:
        UserError: the decoder's output is NaN or infinite.
    """
    dtype = tree_flatten(decoder.parameters())[0][1].dtype
    images = decoder(to_vae(latents, scale, shift).astype(dtype))
    check_finite({"the picture": images}, "behind the VAE's decoder")
    images = mx.clip(images / 2 + 0.5, 0, 1).astype(mx.float32)
    return np.array((images * 255).astype(mx.uint8))
