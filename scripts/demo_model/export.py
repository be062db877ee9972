"""A trained demo model as the files that every job loads: the folder resources/demo.

    config.json                      the architecture, the sampler, and how it was trained
    demo.safetensors                 MM-DiT and VAE, float16, in SD3's single-file layout
    clip_l/, tokenizer_l/            text encoder and vocabulary as on the Hugging Face hub

All names are those of the published models, so DiffusionKit's own loaders read the folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ditquant.artifacts import save_tensors
from ditquant.backend import mx
from ditquant.files import write_text
from ditquant.models.layout import clip_to_hub, mmdit_to_single_file, vae_to_single_file

from .network import Config
from .vocabulary import write_vocabulary

FORMAT = "ditquant.model"
STORED = mx.float16


def _write_tensors(path: Path, tensors: Mapping[str, mx.array]) -> None:
    stored = {name: value.astype(STORED) for name, value in tensors.items()}
    save_tensors(path, stored, "ditquant.model_weights")


def export_model(
    folder: str | Path,
    name: str,
    config: Config,
    parts: Mapping[str, Mapping[str, mx.array]],
    words: list[str],
    training: Mapping[str, Any],
) -> None:
    """Writes a model folder.

    Args:
        folder: where to; created if it is missing.
        name: the model's name, and that of its checkpoint file.
        config: a configuration of `network`.
        parts: flat parameters of `mmdit`, `text`, `encoder` and `decoder`.
        words: what the vocabulary was trained on.
        training: what the model card and `config.json` tell about the training.
    """
    folder = Path(folder)
    vocabulary = write_vocabulary(folder / "tokenizer_l", words)
    tensors = mmdit_to_single_file(parts["mmdit"])
    tensors |= vae_to_single_file(parts["encoder"], "encoder")
    tensors |= vae_to_single_file(parts["decoder"], "decoder")
    _write_tensors(folder / f"{name}.safetensors", tensors)
    _write_tensors(folder / "clip_l" / "model.fp16.safetensors", clip_to_hub(parts["text"]))
    text = config["text"]
    clip = {
        "architectures": ["CLIPTextModelWithProjection"],
        "hidden_act": "quick_gelu",
        "hidden_size": text["model_dims"],
        "max_position_embeddings": text["max_length"],
        "num_attention_heads": text["num_heads"],
        "num_hidden_layers": text["num_layers"],
        "projection_dim": config["mmdit"]["pooled_text_embed_dim"],
        "vocab_size": len(vocabulary),
    }
    write_text(folder / "clip_l" / "config.json", json.dumps(clip, indent=1) + "\n")
    described = {
        "format": FORMAT, "version": 1, "name": name, **config, "license": "MIT",
        "training": dict(training),
    }  # fmt: skip
    write_text(folder / "config.json", json.dumps(described, indent=1, ensure_ascii=False) + "\n")
