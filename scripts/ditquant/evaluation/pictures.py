"""From final latents to a picture in a file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from ..artifacts import read_file, write_file
from ..backend import mx
from ..models.load import load_vae_decoder
from ..models.spec import ModelSpec
from ..network.sampling import decode

PICTURE = "ditquant.picture"
# Format of the final latents of a drawn prompt.
LATENTS = "ditquant.latents"


def save_picture(path: str | Path, latents: mx.array, spec: ModelSpec, dtype: mx.Dtype) -> None:
    """Decodes final latents (1, h, w, c) and writes them as a picture of (8h, 8w) pixels.

    Args:
        spec: of the model whose latent format they have.
        dtype: that the VAE is computed in.
    """
    decoder = load_vae_decoder(spec, dtype)
    pixels = decode(decoder, latents, spec.latent_scale, spec.latent_shift)[0]
    write_file(path, png_bytes(Image.fromarray(pixels)), PICTURE)


def png_bytes(picture: Image.Image) -> bytes:
    """A picture as the content of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def read_picture(path: str | Path) -> np.ndarray:
    """(height, width, 3) uint8 pixels of what `save_picture` wrote."""
    with Image.open(io.BytesIO(read_file(path, PICTURE))) as file:
        return np.asarray(file.convert("RGB"))
