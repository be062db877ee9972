"""Pictures from captions with the demo model, many at a time.

The workflow draws one picture a job, through the library's own sampler. Measuring the accuracy of
the model takes hundreds, and a forward pass of 32 captions costs little more than one of four.
The mathematics is the workflow's: Euler steps of rectified flow on a shifted schedule, with
classifier-free guidance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from ditquant.backend import mx, nn

from . import forward
from .network import LATENT_SCALE, LATENT_SHIFT, Config, parameters
from .training import Params, decode


def sigma_schedule(steps: int, shift: float) -> list[float]:
    """steps + 1 noise levels from 1 to 0, shifted: shift s / (1 + (shift - 1) s)."""
    even = [1 - i / steps for i in range(steps + 1)]
    return [shift * sigma / (1 + (shift - 1) * sigma) for sigma in even]


def sample_latents(
    config: Config,
    params: Params,
    context: mx.array,
    pooled: mx.array,
    noise: mx.array,
    steps: int,
    cfg_weight: float,
) -> mx.array:
    """Integrates noise to latents.

    Args:
        config: of the networks.
        params: flat parameters of the MM-DiT; their dtype is the compute dtype.
        context: token embeddings of n captions, then n times of the empty caption.
        pooled: pooled embeddings in the same order.
        noise: (n, 16, 16, 16).
        steps: Euler steps.
        cfg_weight: v = v_empty + cfg_weight * (v_caption - v_empty).

    Returns:
        Latents in the VAE's format, float32 (n, 16, 16, 16).
    """
    heads = config["mmdit"]["num_heads"]
    dtype = params["x_embedder.proj.bias"].dtype
    x = forward.patchify(noise)
    sigmas = sigma_schedule(steps, config["sampler"]["shift"])
    for sigma, following in pairwise(sigmas):
        both = mx.concatenate([x, x]).astype(dtype)
        levels = mx.full((len(both),), sigma)
        predicted = forward.velocity(params, heads, both, levels, context, pooled)
        guided, empty = predicted.astype(mx.float32).split(2)
        x = x + (following - sigma) * (empty + cfg_weight * (guided - empty))
        mx.eval(x)
    return forward.unpatchify(x) / LATENT_SCALE + LATENT_SHIFT


def to_pictures(decoder: nn.Module, latents: mx.array) -> np.ndarray:
    """Decodes latents in the VAE's format: uint8 (n, 128, 128, 3)."""
    decoded = decode(decoder, latents).astype(mx.float32)
    levels = mx.clip(mx.round((decoded + 1) * 127.5), 0, 255)
    return np.array(levels.astype(mx.uint8))


def draw_captions(
    config: Config,
    text: nn.Module,
    mmdit: nn.Module,
    decoder: nn.Module,
    tokens: mx.array,
    empty: mx.array,
    seeds: Sequence[int],
    steps: int = 28,
    cfg_weight: float = 4.0,
    batch_size: int = 32,
) -> Iterator[np.ndarray]:
    """Pictures of captions in batches, each of its own seed whatever the batch.

    Args:
        config: of the networks.
        text: DiffusionKit's `CLIPTextModel`.
        mmdit: DiffusionKit's `MMDiT`.
        decoder: DiffusionKit's `VAEDecoder`.
        tokens: ids of the captions, (n, length).
        empty: ids of the empty caption, (length,).
        seeds: one for each caption.
        steps: Euler steps.
        cfg_weight: weight of the classifier-free guidance.
        batch_size: captions at a time.

    Yields:
        uint8 (batch, 128, 128, 3), in the order of the captions.
    """
    text_params, params = parameters(text), parameters(mmdit)
    heads = config["text"]["num_heads"]
    for start in range(0, len(tokens), batch_size):
        chosen = tokens[start : start + batch_size]
        ids = mx.concatenate([chosen, mx.broadcast_to(empty, chosen.shape)])
        context, pooled = forward.encode_text(text_params, heads, ids)
        keys = [mx.random.key(seed) for seed in seeds[start : start + batch_size]]
        noise = mx.stack([mx.random.normal((16, 16, 16), key=key) for key in keys])
        latents = sample_latents(config, params, context, pooled, noise, steps, cfg_weight)
        yield to_pictures(decoder, latents)
