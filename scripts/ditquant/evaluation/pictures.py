"""From final latents to a picture in a file."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from ..artifacts import atomic_path
from ..backend import mx
from ..models.load import load_vae_decoder
from ..models.spec import ModelSpec
from ..network.sampling import decode


def save_picture(path: str | Path, latents: mx.array, spec: ModelSpec, dtype: mx.Dtype) -> None:
    """Decodes final latents (1, h, w, c) and writes them as a picture of (8h, 8w) pixels.

    Args:
        spec: of the model whose latent format they have.
        dtype: that the VAE is computed in.
    """
    decoder = load_vae_decoder(spec, dtype)
    pixels = decode(decoder, latents, spec.latent_scale, spec.latent_shift)[0]
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary)
