"""A random Stable Diffusion 3 medium: the published files' layout and size, and nobody's weights.

    .venv/bin/python benchmarks/real_size_model.py results/real-size-model

Writes `sd3_medium.safetensors` (MM-DiT and VAE in float16, 4.34 GB) and, as a cache of the Hugging
Face hub that is used offline, both CLIP encoders at full size (`hub/`, 1.6 GB). Weights are as
DiffusionKit's layers draw them; 1 in 64 biases in front of GELU is raised, so that what fc2 reads
has loud channels, as in trained models. The vocabulary is the demo's.

MM-DiT and VAE have the sizes that DiffusionKit's tables give them. `--small` makes the encoders
narrow, for rehearsals with tables that were made small (tests/support/site).
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import records  # noqa: F401  (the library's place)
from mlx.utils import tree_flatten

from demo_model.shapes import words
from demo_model.vocabulary import write_vocabulary
from ditquant.backend import import_diffusionkit, mx, nn
from ditquant.models.layout import clip_to_hub, mmdit_to_single_file, vae_to_single_file
from ditquant.models.load import mmdit_config
from ditquant.models.spec import PUBLISHED

NAME, FILE = "sd3-medium", "sd3_medium.safetensors"
REVISION = "0" * 40
# One channel in so many is loud, by so much.
LOUD_SHARE, LOUDNESS = 64, 4.0


@dataclasses.dataclass(frozen=True)
class Clip:
    """A CLIP text encoder: its folder on the hub, and its size."""

    name: str
    width: int
    layers: int
    heads: int
    tokens: int
    vocabulary: int
    activation: str


CLIPS = (
    Clip("clip_l", 768, 12, 12, 77, 49408, "quick_gelu"),
    Clip("clip_g", 1280, 32, 20, 77, 49408, "gelu"),
)
SMALL_CLIPS = (
    Clip("clip_l", 32, 2, 2, 24, 1024, "quick_gelu"),
    Clip("clip_g", 48, 2, 2, 24, 1024, "gelu"),
)


def _kit(name: str) -> Any:
    import_diffusionkit()
    return importlib.import_module(f"diffusionkit.mlx.{name}")


def parameters(module: nn.Module) -> dict[str, mx.array]:
    return dict(tree_flatten(module.parameters()))


def loud(name: str, tensor: mx.array) -> mx.array:
    """`tensor`, with some channels raised if it is a bias in front of GELU."""
    if not name.endswith("mlp.fc1.bias"):
        return tensor
    channels = mx.random.permutation(tensor.shape[0])[: tensor.shape[0] // LOUD_SHARE]
    return tensor.at[channels].add(LOUDNESS)


def write_tensors(path: Path, tensors: dict[str, mx.array]) -> None:
    """In float16, one evaluated after the other: float32 numbers are gone before the next."""
    halves = {}
    for name in list(tensors):
        halves[name] = tensors.pop(name).astype(mx.float16)
        mx.eval(halves[name])
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    mx.save_safetensors(str(unfinished.with_suffix(".partial.safetensors")), halves)
    os.replace(unfinished.with_suffix(".partial.safetensors"), path)


def write_checkpoint(path: Path, seed: int) -> None:
    mx.random.seed(seed)
    mmdit = _kit("mmdit").MMDiT(mmdit_config(PUBLISHED[NAME]))
    tensors = mmdit_to_single_file({name: loud(name, t) for name, t in parameters(mmdit).items()})
    del mmdit
    for part in ("encoder", "decoder"):
        config = getattr(_kit("model_io"), f"VAE{part.capitalize()}Config")()
        vae = getattr(_kit("vae"), f"VAE{part.capitalize()}")(**dataclasses.asdict(config))
        tensors |= vae_to_single_file(parameters(vae), part)
    write_tensors(path, tensors)


def write_clip(snapshot: Path, clip: Clip, seed: int) -> None:
    """The encoder's weights, its configuration, and a tokenizer beside them."""
    mx.random.seed(seed)
    shape = _kit("config").CLIPTextModelConfig(
        clip.layers, clip.width, clip.heads, clip.tokens, clip.vocabulary, clip.width
    )
    weights = clip_to_hub(parameters(_kit("clip").CLIPTextModel(shape)))
    write_tensors(snapshot / clip.name / "model.fp16.safetensors", weights)
    document: Mapping[str, Any] = {
        "architectures": ["CLIPTextModelWithProjection"],
        "hidden_act": clip.activation,
        "hidden_size": clip.width,
        "max_position_embeddings": clip.tokens,
        "num_attention_heads": clip.heads,
        "num_hidden_layers": clip.layers,
        "projection_dim": clip.width,
        "vocab_size": clip.vocabulary,
    }
    (snapshot / clip.name / "config.json").write_text(json.dumps(document, indent=1), "utf-8")
    tokens = write_vocabulary(snapshot / f"tokenizer_{clip.name[-1]}", words())
    assert len(tokens) <= clip.vocabulary


def write_model(folder: Path, clips: tuple[Clip, ...] = CLIPS, seed: int = 0) -> Path:
    """The checkpoint, and the hub's cache in `folder / "hub"`; what is there already stays.

    Returns:
        The checkpoint, which is written last.
    """
    checkpoint = folder / FILE
    if checkpoint.is_file():
        return checkpoint
    repository = folder / "hub" / f"models--{PUBLISHED[NAME].text_repository.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(REVISION, "utf-8")
    for index, clip in enumerate(clips):
        write_clip(repository / "snapshots" / REVISION, clip, seed + 1 + index)
    write_checkpoint(checkpoint, seed)
    return checkpoint


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--small", action="store_true", help="narrow text encoders")
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    path = write_model(options.folder, SMALL_CLIPS if options.small else CLIPS)
    size = path.stat().st_size / 1e9
    print(f"{path}: {size:.2f} GB in {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
