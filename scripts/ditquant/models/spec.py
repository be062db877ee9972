"""Descriptions of models: everything a job must know before it loads a weight.

Two sources give a `ModelSpec`: the registry of published checkpoints below, and `config.json` of a
local model folder (format `ditquant.model`, as in resources/demo). A new published model is a new
entry, not a fork.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import UserError
from .shapes import Shape, check_image_size, read_shape, read_vae


@dataclass(frozen=True)
class TextEncoder:
    """One CLIP text encoder: names in DiffusionKit's table of files, and how prompts are padded."""

    name: str  # "clip_l"
    tokenizer: str  # "tokenizer_l"
    pad_with_eos: bool


@dataclass(frozen=True)
class TextSpec:
    """How prompts become conditioning.

    Attributes:
        encoders: their hidden states are joined along the channels, as are their pooled outputs.
        channels: token width that the MM-DiT expects; narrower hidden states are zero-padded.
        second_sequence: tokens after CLIP's: "t5" (encoded by T5-XXL if the configuration asks for
            it, else zeros of the same shape as CLIP's, as DiffusionKit does) or "none".
    """

    encoders: tuple[TextEncoder, ...]
    channels: int
    second_sequence: str = "none"


@dataclass(frozen=True)
class ModelSpec:
    """A model's identity, files and constants.

    Attributes:
        name: "demo", "sd3-medium", or the name in a local folder's config.json.
        repository: key in DiffusionKit's tables and, for published models, on the hub.
        text_repository: the same for the text encoders.
        checkpoint: the single-file checkpoint (MM-DiT and VAE); None: the hub's.
        folder: a local model folder that holds every file; None for published models.
        shape: sizes of the MM-DiT; the workflow plans with them.
        mmdit: arguments of DiffusionKit's MMDiTConfig; empty: the table's own entry for the key.
        vae_encoder, vae_decoder: arguments of DiffusionKit's VAE configurations.
        shift: of the sigma schedule.
        latent_scale, latent_shift: of the latent format, x_model = (x_vae - shift) * scale.
        image_size: default (height, width) in pixels.
    """

    name: str
    repository: str
    text_repository: str
    text: TextSpec
    checkpoint: Path | None = None
    folder: Path | None = None
    shape: Shape = field(default_factory=Shape)
    mmdit: dict[str, Any] = field(default_factory=dict)
    vae_encoder: dict[str, Any] = field(default_factory=dict)
    vae_decoder: dict[str, Any] = field(default_factory=dict)
    shift: float = 3.0
    latent_scale: float = 1.5305
    latent_shift: float = 0.0609
    image_size: tuple[int, int] = (512, 512)

    @property
    def block_names(self) -> list[str]:
        return self.shape.block_names


_CLIP_L = TextEncoder("clip_l", "tokenizer_l", pad_with_eos=True)
_CLIP_G = TextEncoder("clip_g", "tokenizer_g", pad_with_eos=False)

PUBLISHED: dict[str, ModelSpec] = {
    "sd3-medium": ModelSpec(
        name="sd3-medium",
        repository="argmaxinc/mlx-stable-diffusion-3-medium",
        text_repository="argmaxinc/stable-diffusion",
        text=TextSpec((_CLIP_L, _CLIP_G), channels=4096, second_sequence="t5"),
        shape=Shape(hidden_size=1536, num_heads=24, depth_multimodal=24),
        image_size=(512, 512),
    ),
}

# The demo model is beside the workflow, wherever the user and the results are.
_REPOSITORY = Path(__file__).parents[3]

# Names that a configuration may use for `model.name`; "local" is any folder.
FOLDER_MODELS = {"demo": _REPOSITORY / "resources" / "demo", "local": None}
MODEL_NAMES = (*FOLDER_MODELS, *PUBLISHED)
MODEL_FORMAT = "ditquant.model"


def read_spec(name: str, checkpoint: str | None = None) -> ModelSpec:
    """The specification that a configuration's `model:` section names.

    Args:
        name: one of `MODEL_NAMES`.
        checkpoint: for a published model a local single-file checkpoint (None: the hub); for
            "local" the model folder.

    Raises:
        UserError: unknown model, or files that are not there.
    """
    if name not in MODEL_NAMES:
        raise UserError(f"Unknown model {name!r}: model.name is one of {', '.join(MODEL_NAMES)}.")
    path = Path(os.path.expanduser(checkpoint)) if checkpoint else None
    if name in PUBLISHED:
        if path is not None and not path.is_file():
            raise UserError(f"model.checkpoint: there is no file {path}.")
        return replace(PUBLISHED[name], checkpoint=path)
    folder = path or FOLDER_MODELS[name]
    if folder is None:
        raise UserError("model.name is 'local': set model.checkpoint to the model's folder.")
    return _read_folder(folder)


@dataclass(frozen=True)
class Model:
    """A configuration's `model:` section, as jobs get it.

    Attributes:
        name, checkpoint: see `read_spec`.
        dtype: "float32", "float16" or "bfloat16", of weights and activations.
        identity: what tells its checkpoint from others, see `identity`.
    """

    name: str
    checkpoint: str | None
    dtype: str
    identity: str = ""

    @classmethod
    def from_params(cls, section: Mapping[str, str | None]) -> Model:
        return cls(**section)  # type: ignore[arg-type]

    @property
    def spec(self) -> ModelSpec:
        return read_spec(self.name, self.checkpoint)


def _read_folder(folder: Path) -> ModelSpec:
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(f"{folder} is no model folder: it has no config.json.")
    try:
        document = json.loads(config.read_text("utf-8"))
        if document["format"] != MODEL_FORMAT or document["version"] != 1:
            raise UserError(f"{config} is not {MODEL_FORMAT} version 1.")
        name, shape = str(document["name"]), read_shape(document["mmdit"])
        height, width = document["image_size"]
        if type(height) is not int or type(width) is not int:
            raise ValueError(f"image_size: {document['image_size']}")
        shift = float(document["sampler"]["shift"])
        if not 0 < shift < math.inf:
            raise ValueError(f"sampler.shift: {shift}")
        return ModelSpec(
            name=name,
            repository=f"ditquant/{name}",
            text_repository=f"ditquant/{name}-text",
            text=TextSpec((_CLIP_L,), channels=shape.token_level_text_embed_dim),
            checkpoint=folder / f"{name}.safetensors",
            folder=folder,
            shape=shape,
            mmdit=document["mmdit"],
            vae_encoder=read_vae(document["vae"], "encoder"),
            vae_decoder=read_vae(document["vae"], "decoder"),
            shift=shift,
            image_size=(height, width),
        )
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{config} lacks or garbles {error}.") from error


def drawn_size(spec: ModelSpec, asked: Sequence[int] | None) -> list[int]:
    """Height and width of pictures in pixels.

    Args:
        asked: `calibration.image_size`; None: the model's own.

    Raises:
        UserError: the model cannot draw such pictures.
    """
    height, width = asked or spec.image_size
    own = f"image_size of {spec.folder}/config.json" if spec.folder else "the model's image_size"
    key = "calibration.image_size" if asked else own
    check_image_size(spec.shape, (height, width), key, spec.name)
    return [height, width]


def check_t5(spec: ModelSpec, asked: bool) -> None:
    """Checks `text.t5`.

    Raises:
        UserError: a model that does not read T5 is to.
    """
    if asked and spec.text.second_sequence != "t5":
        raise UserError(f"text.t5 is true, but {spec.name} reads no T5: set it to false.")
