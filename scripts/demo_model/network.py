"""The demo model's networks: how they are configured, built and initialised.

They are DiffusionKit's own classes, in the architecture of Stable Diffusion 3 (arXiv 2403.03206)
at 1/150 of its size: an MM-DiT with six multimodal blocks, one CLIP text model that is trained
along with it, and a VAE with 16 latent channels at 1/8 of the resolution. `DEMO` is what
`config.json` of an exported model records.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from mlx.utils import tree_flatten

from ditquant.backend import import_diffusionkit, mx, nn

# Stable Diffusion 3's latent format: what the MM-DiT sees is (latent - SHIFT) * SCALE.
LATENT_SHIFT, LATENT_SCALE = 0.0609, 1.5305

Config = dict[str, Any]

DEMO: Config = {
    "mmdit": {
        "num_heads": 4,
        "depth_multimodal": 6,
        "hidden_size": 256,
        "max_latent_resolution": 16,
        "pooled_text_embed_dim": 128,
        "token_level_text_embed_dim": 128,
    },
    "vae": {
        "encoder": {
            "in_channels": 3,
            "out_channels": 32,
            "block_out_channels": [16, 32, 64, 128],
            "layers_per_block": 1,
            "resnet_groups": 8,
        },
        "decoder": {
            "in_channels": 16,
            "out_channels": 3,
            "block_out_channels": [16, 32, 64, 128],
            "layers_per_block": 2,
            "resnet_groups": 8,
        },
    },
    "text": {"num_layers": 3, "model_dims": 128, "num_heads": 4, "max_length": 20},
    "sampler": {"shift": 3.0},
    "image_size": [128, 128],
}

# For tests: every part of the demo model, as small as the classes allow.
TINY: Config = {
    "mmdit": {
        "num_heads": 2,
        "depth_multimodal": 2,
        "hidden_size": 16,
        "max_latent_resolution": 16,
        "pooled_text_embed_dim": 8,
        "token_level_text_embed_dim": 8,
    },
    "vae": {
        "encoder": DEMO["vae"]["encoder"] | {"block_out_channels": [4] * 4, "resnet_groups": 2},
        "decoder": DEMO["vae"]["decoder"] | {"block_out_channels": [4] * 4, "resnet_groups": 2},
    },
    "text": {"num_layers": 2, "model_dims": 8, "num_heads": 2, "max_length": 20},
    "sampler": {"shift": 3.0},
    "image_size": [128, 128],
}

CONFIGS = {"demo": DEMO, "tiny": TINY}


@dataclass
class Networks:
    """The trainable parts; each is a DiffusionKit module with float32 parameters."""

    mmdit: nn.Module
    text: nn.Module
    encoder: nn.Module
    decoder: nn.Module


def _kit(module: str) -> Any:
    import_diffusionkit()
    return importlib.import_module(f"diffusionkit.mlx.{module}")


def mmdit_config(config: Config) -> Any:
    """DiffusionKit's `MMDiTConfig` for the section `mmdit` of a configuration, in float32."""
    options = dict(config["mmdit"])
    options["hidden_size_override"] = options.pop("hidden_size")
    return _kit("config").MMDiTConfig(
        **options, dtype=mx.float32, float16_dtype=mx.float32, low_memory_mode=False
    )


def clip_config(config: Config, vocabulary_size: int) -> Any:
    """DiffusionKit's `CLIPTextModelConfig` for the section `text` of a configuration."""
    options = config["text"]
    return _kit("config").CLIPTextModelConfig(
        **options,
        vocab_size=vocabulary_size,
        projection_dim=config["mmdit"]["pooled_text_embed_dim"],
    )


def build(config: Config, vocabulary_size: int, seed: int) -> Networks:
    """Freshly initialised networks.

    The modulations and the output layer of the MM-DiT start at zero, so every block starts as
    the identity and the first prediction is zero (adaLN-Zero, arXiv 2212.09748).
    """
    mx.random.seed(seed)
    mmdit = _kit("mmdit").MMDiT(mmdit_config(config))
    silent = [mmdit.final_layer.linear, mmdit.final_layer.adaLN_modulation.layers[1]]
    for block in mmdit.multimodal_transformer_blocks:
        for stream in (block.image_transformer_block, block.text_transformer_block):
            silent.append(stream.adaLN_modulation.layers[1])
    for linear in silent:
        linear.update({name: mx.zeros_like(value) for name, value in linear.parameters().items()})
    return Networks(
        mmdit=mmdit,
        text=_kit("clip").CLIPTextModel(clip_config(config, vocabulary_size)),
        encoder=_kit("vae").VAEEncoder(**config["vae"]["encoder"]),
        decoder=_kit("vae").VAEDecoder(**config["vae"]["decoder"]),
    )


def parameters(module: nn.Module) -> dict[str, mx.array]:
    """Flat parameters: module path to array."""
    return dict(tree_flatten(module.parameters()))
