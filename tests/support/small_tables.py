"""DiffusionKit's tables with a small configuration in SD3-medium's place: same blocks, narrower."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

SD3 = "argmaxinc/mlx-stable-diffusion-3-medium"
WIDTHS = {
    "hidden_size_override": 64,
    "num_heads": 2,
    "max_latent_resolution": 8,
    "pooled_text_embed_dim": 80,
}
_VAE = {"block_out_channels": [4, 4, 4, 8], "resnet_groups": 2, "layers_per_block": 1}
VAE = {
    "encoder": {"in_channels": 3, "out_channels": 32, **_VAE},
    "decoder": {"in_channels": 16, "out_channels": 3, **_VAE},
}


def small_tables(model_io: Any) -> dict[str, Any]:
    """Replacements for names of `diffusionkit.mlx.model_io`; depth and text width stay SD3's."""
    config = dataclasses.replace(model_io._CONFIG[SD3], low_memory_mode=False, **WIDTHS)
    return {
        "_CONFIG": {**model_io._CONFIG, SD3: config},
        "VAEDecoderConfig": partial(model_io.VAEDecoderConfig, **VAE["decoder"]),
        "VAEEncoderConfig": partial(model_io.VAEEncoderConfig, **VAE["encoder"]),
    }
