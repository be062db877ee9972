"""Small random models in the layouts of real ones: a model folder, an SD3 file, a hub cache."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlx.utils import tree_flatten

from demo_model.shapes import words
from demo_model.vocabulary import write_vocabulary
from ditquant.artifacts import save_tensors
from ditquant.backend import import_diffusionkit, mx, nn
from ditquant.models.layout import clip_to_hub, mmdit_to_single_file, vae_to_single_file
from ditquant.network.blocks import Network
from ditquant.network.diffusionkit import DiffusionKitNetwork

from .small_tables import SD3, VAE, small_tables

HIDDEN = 64
TEXT = "argmaxinc/stable-diffusion"

CONFIG: dict[str, Any] = {
    "format": "ditquant.model",
    "version": 1,
    "name": "tiny",
    "mmdit": {
        "num_heads": 2,
        "depth_multimodal": 2,
        "hidden_size": HIDDEN,
        "max_latent_resolution": 8,
        "pooled_text_embed_dim": 32,
        "token_level_text_embed_dim": 32,
    },
    "vae": VAE,
    "sampler": {"shift": 3.0},
    "image_size": [64, 64],
}


def _module(name: str) -> Any:
    import_diffusionkit()
    return importlib.import_module(f"diffusionkit.mlx.{name}")


def parameters(model: nn.Module | Network) -> dict[str, mx.array]:
    module = model.module if isinstance(model, Network) else model
    return dict(tree_flatten(module.parameters()))


def build_mmdit(seed: int = 0, **overrides: Any) -> nn.Module:
    """A random MMDiT, small and with unit-sized modulation, so that every layer matters."""
    options = {**CONFIG["mmdit"], **overrides}
    options["hidden_size_override"] = options.pop("hidden_size")
    config = _module("config").MMDiTConfig(
        **{"dtype": mx.float32, "float16_dtype": mx.float32, "low_memory_mode": False, **options}
    )
    mx.random.seed(seed)
    model = _module("mmdit").MMDiT(config)
    mx.eval(model.parameters())
    return model


def build_network(seed: int = 0, **overrides: Any) -> Network:
    """`build_mmdit` as the tracks take it."""
    return DiffusionKitNetwork(build_mmdit(seed, **overrides))


def _float16(tensors: dict[str, mx.array]) -> dict[str, mx.array]:
    return {name: tensor.astype(mx.float16) for name, tensor in tensors.items()}


def _single_file(path: Path, mmdit: nn.Module, seed: int) -> None:
    mx.random.seed(seed + 1)
    vae = _module("vae")
    encoder = vae.VAEEncoder(**CONFIG["vae"]["encoder"])
    decoder = vae.VAEDecoder(**CONFIG["vae"]["decoder"])
    tensors = mmdit_to_single_file(parameters(mmdit))
    tensors |= vae_to_single_file(parameters(encoder), "encoder")
    tensors |= vae_to_single_file(parameters(decoder), "decoder")
    save_tensors(path, _float16(tensors), "ditquant.model_weights")


def _text_encoder(folder: Path, name: str, width: int, seed: int, vocabulary: dict) -> None:
    config = {
        "architectures": ["CLIPTextModelWithProjection"],
        "num_hidden_layers": 2,
        "hidden_size": width,
        "num_attention_heads": 2,
        "max_position_embeddings": 24,
        "vocab_size": len(vocabulary),
        "projection_dim": width,
        "hidden_act": "quick_gelu",
    }
    mx.random.seed(seed)
    model = _module("clip").CLIPTextModel(
        _module("config").CLIPTextModelConfig(2, width, 2, 24, len(vocabulary), width)
    )
    (folder / name).mkdir(parents=True)
    (folder / name / "config.json").write_text(json.dumps(config))
    save_tensors(
        folder / name / "model.fp16.safetensors",
        _float16(clip_to_hub(parameters(model))),
        "ditquant.model_weights",
    )


def write_folder(folder: Path, seed: int = 0, name: str = "tiny", **mmdit: Any) -> Path:
    """A local model folder in the demo model's format; `mmdit` changes the MM-DiT's options."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**CONFIG, "name": name, "mmdit": {**CONFIG["mmdit"], **mmdit}}
    (folder / "config.json").write_text(json.dumps(config))
    _single_file(folder / f"{name}.safetensors", build_mmdit(seed, **mmdit), seed)
    vocabulary = write_vocabulary(folder / "tokenizer_l", words())
    _text_encoder(folder, "clip_l", 32, seed + 2, vocabulary)
    return folder


def snapshot_of(hub: Path, repository: str) -> Path:
    """The folder of a repository's files in a hand-made cache of the Hugging Face hub."""
    folder = hub / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text("0" * 40)
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True, exist_ok=True)
    return snapshot


def write_sd3(folder: Path, hub: Path, seed: int = 0) -> Path:
    """`sd3_medium.safetensors` in the original layout, and a hand-made offline hub cache.

    Args:
        folder: where the single file goes.
        hub: becomes the Hugging Face cache folder (HF_HUB_CACHE) with the text encoders.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "sd3_medium.safetensors"
    _single_file(checkpoint, build_small_sd3(seed), seed)
    snapshot = snapshot_of(hub, TEXT)
    vocabulary = write_vocabulary(snapshot / "tokenizer_l", words())
    write_vocabulary(snapshot / "tokenizer_g", words())
    _text_encoder(snapshot, "clip_l", 32, seed + 2, vocabulary)
    _text_encoder(snapshot, "clip_g", 48, seed + 3, vocabulary)
    return checkpoint


def build_small_sd3(seed: int = 0) -> nn.Module:
    """A random MMDiT of `small_tables`' configuration: 24 blocks of 64 channels."""
    config = small_tables(_module("model_io"))["_CONFIG"][SD3]
    mx.random.seed(seed)
    model = _module("mmdit").MMDiT(config)
    mx.eval(model.parameters())
    return model


@contextmanager
def small_sd3() -> Iterator[Any]:
    """DiffusionKit's tables with `write_sd3`'s configuration in SD3-medium's place."""
    model_io = _module("model_io")
    replaced = small_tables(model_io)
    before = {name: getattr(model_io, name) for name in replaced}
    vars(model_io).update(replaced)
    try:
        yield model_io
    finally:
        vars(model_io).update(before)


def write_conditioning(path: Path, captions: int = 3) -> Path:
    """Random texts of some captions, as rule `encode_prompts` writes them for the tiny model."""
    mx.random.seed(5)
    tensors = {
        "conditioning": mx.random.normal((captions, 9, 32)),
        "pooled": mx.random.normal((captions, 32)),
        "negative_conditioning": mx.random.normal((1, 9, 32)),
        "negative_pooled": mx.random.normal((1, 32)),
    }
    save_tensors(path, tensors, "ditquant.conditioning")
    return path
