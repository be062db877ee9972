"""Loads the parts of a model separately, through DiffusionKit's own loader functions.

A job loads only what it needs: the MM-DiT for trajectories and blocks, the VAE decoder for
pictures, the text encoders in a single job. Published models, local checkpoints and model folders
are loaded in the same way: DiffusionKit's tables get an entry for the specification, and requests
for files are answered from the disk if the file is there.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from mlx.utils import tree_flatten

from ..backend import hub_files, import_diffusionkit, mx, nn, with_names
from ..errors import UserError
from ..job_times import counted_as
from . import t5
from .files import check_clip
from .hub import hub_message
from .layout import MMDIT_PREFIX, VAE_PREFIX
from .shapes import block_path
from .spec import ModelSpec, TextEncoder
from .weights import Reader

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


@contextmanager
def _entry(table: dict[str, Any], key: str, value: Any) -> Iterator[None]:
    """`table[key] = value` within the context."""
    missing = object()
    before = table.get(key, missing)
    table[key] = value
    try:
        yield
    finally:
        if before is missing:
            del table[key]
        else:
            table[key] = before


def mmdit_config(spec: ModelSpec) -> Any:
    """A fresh MMDiTConfig (DiffusionKit's loader writes into the object that it is given)."""
    import_diffusionkit()
    config = importlib.import_module("diffusionkit.mlx.config")
    if not spec.mmdit:
        model_io = importlib.import_module("diffusionkit.mlx.model_io")
        return dataclasses.replace(model_io._CONFIG[spec.repository], low_memory_mode=False)
    arguments = dict(spec.mmdit)
    arguments.pop("hidden_size", None)
    arguments["hidden_size_override"] = spec.shape.hidden_size
    dtype = DTYPES[arguments.pop("dtype", "float32")]
    return config.MMDiTConfig(**arguments, dtype=dtype, float16_dtype=dtype, low_memory_mode=False)


def build_mmdit(spec: ModelSpec) -> nn.Module:
    """DiffusionKit's MMDiT with random weights, which are not computed before they are used."""
    import_diffusionkit()
    return importlib.import_module("diffusionkit.mlx.mmdit").MMDiT(mmdit_config(spec))


def reason(error: Exception) -> str:
    """What a loader complains of, in one line; MLX names the tensors on lines of their own."""
    first, *names = str(error).splitlines() or [type(error).__name__]
    if isinstance(error, KeyError):
        return f"it lacks {first}"
    if len(names) > 5:
        names = [*names[:5], f"and {len(names) - 5} more"]
    return " ".join([first.strip(), *(name.strip() for name in names)]).rstrip(".")


class _Files:
    """Answers a loader's requests: from disk where the specification has the file, else the hub.

    Attributes:
        last: what was asked for last, for messages.
    """

    def __init__(self, spec: ModelSpec, download: Callable[[str, str], str]):
        self._spec, self._download = spec, download
        self.last = str(spec.checkpoint or spec.repository)

    def __call__(self, repository: str, file: str) -> str:
        """Path of a file.

        Raises:
            UserError: it could not be downloaded.
        """
        spec = self._spec
        path: Path | None = None
        if repository == spec.repository:
            # The loaders always fetch the hub's config.json and never read it.
            path = spec.checkpoint
        elif repository == spec.text_repository and spec.folder is not None:
            path = spec.folder / file
        if path is None:
            try:
                path = Path(self._download(repository, file))
            except Exception as error:
                raise UserError(hub_message(error, file, repository)) from error
        if repository != spec.repository or file != "config.json":
            self.last = str(path)
        return str(path)


def _complete(kind: type[nn.Module]) -> type[nn.Module]:
    """A text encoder that wants every parameter, in its shape; DiffusionKit's takes what it gets.

    What a file lacks would keep its random start.
    """

    class Complete(kind):
        def update(self, parameters: Any, strict: bool = True) -> nn.Module:
            if not strict:  # `load_weights` has checked them
                return super().update(parameters, strict=False)
            return self.load_weights(tree_flatten(parameters))

    return Complete


@contextmanager
def _loaders(
    spec: ModelSpec, dtype: mx.Dtype, prefix: str = ""
) -> Iterator[tuple[ModuleType, Reader]]:
    """DiffusionKit's `model_io` with the specification entered in its tables, and what it reads by.

    Args:
        prefix: of the names of the tensors that are loaded.

    Raises:
        UserError: a file that is missing, gated, damaged or of another model.
    """
    import_diffusionkit()
    kit_config = importlib.import_module("diffusionkit.mlx.config")
    model_io = importlib.import_module("diffusionkit.mlx.model_io")
    files, reader = _Files(spec, model_io.hf_hub_download), Reader(prefix, dtype)
    names: dict[str, Any] = {
        "_FLOAT16": dtype if dtype != mx.float32 else mx.float16,
        "mx": with_names(mx, load=reader.load),
        "CLIPTextModel": _complete(model_io.CLIPTextModel),
        "SD3T5Encoder": _complete(model_io.SD3T5Encoder),
        "T5Config": t5.config_class(files),
    }
    # The loaders build the VAE from these classes' defaults, whatever the model.
    if spec.vae_decoder:
        names["VAEDecoderConfig"] = lambda: kit_config.VAEDecoderConfig(**spec.vae_decoder)
    if spec.vae_encoder:
        names["VAEEncoderConfig"] = lambda: kit_config.VAEEncoderConfig(**spec.vae_encoder)
    key, file = spec.repository, f"{spec.name}.safetensors"
    vae = {f"vae_{part}": f"{VAE_PREFIX}{part}." for part in ("encoder", "decoder")}
    text_files = model_io._MODELS[model_io._DEFAULT_MODEL]
    with (
        hub_files(files, **names),
        _entry(model_io._MMDIT, key, model_io._MMDIT.get(key, {key: file, "vae": file})),
        _entry(model_io._PREFIX, key, model_io._PREFIX.get(key, vae)),
        _entry(model_io._CONFIG, key, mmdit_config(spec)),
        _entry(
            model_io._MODELS,
            spec.text_repository,
            model_io._MODELS.get(spec.text_repository, text_files),
        ),
    ):
        try:
            yield model_io, reader
        except (LookupError, ValueError, TypeError, RuntimeError) as error:
            part = "checkpoint" if prefix else "text encoder"
            raise UserError(
                f"{files.last} is no {part} of {spec.name}: {reason(error)}. Check model.name and "
                "model.checkpoint in the configuration."
            ) from error
        except OSError as error:
            raise UserError(f"{files.last} could not be read: {error}") from error


def _parameters(model: nn.Module) -> dict[str, mx.array]:
    return dict(tree_flatten(model.parameters()))


@counted_as("loading")
def load_mmdit(
    spec: ModelSpec, dtype: mx.Dtype, blocks: Collection[str] | None = None
) -> nn.Module:
    """DiffusionKit's MMDiT with its weights in `dtype`, checked to be finite.

    Args:
        blocks: names of the blocks whose weights are read and checked now; all others are read when
            they are used. None: everything, for a job that runs the network.
    """
    with _loaders(spec, dtype, MMDIT_PREFIX) as (model_io, reader):
        model = model_io.load_mmdit(
            key=spec.repository,
            float16=dtype != mx.float32,
            model_key=spec.repository,
            low_memory_mode=False,
        )
    parameters = _parameters(model)
    if blocks is not None:
        paths = tuple(f"{block_path(block)}." for block in blocks)
        parameters = {name: parameters[name] for name in parameters if name.startswith(paths)}
    reader.check(parameters)
    return model


@counted_as("loading")
def load_vae_decoder(spec: ModelSpec, dtype: mx.Dtype) -> nn.Module:
    """DiffusionKit's VAEDecoder: latents (B, h, w, 16) -> images (B, 8h, 8w, 3) in [-1, 1]."""
    with _loaders(spec, dtype, f"{VAE_PREFIX}decoder.") as (model_io, reader):
        decoder = model_io.load_vae_decoder(key=spec.repository, float16=dtype != mx.float32)
    reader.check(_parameters(decoder))
    return decoder


@counted_as("loading")
def load_vae_encoder(spec: ModelSpec, dtype: mx.Dtype) -> nn.Module:
    """DiffusionKit's VAEEncoder: images (B, H, W, 3) in [-1, 1] -> mean, log-variance."""
    with _loaders(spec, dtype, f"{VAE_PREFIX}encoder.") as (model_io, reader):
        encoder = model_io.load_vae_encoder(key=spec.repository, float16=dtype != mx.float32)
    reader.check(_parameters(encoder))
    return encoder


@counted_as("loading")
def load_text_encoder(
    spec: ModelSpec, encoder: TextEncoder, dtype: mx.Dtype
) -> tuple[nn.Module, Any]:
    """One CLIP text model and its tokenizer, padded to the model's own length."""
    with _loaders(spec, dtype) as (model_io, reader):
        table, name = model_io._MODELS[spec.text_repository], encoder.tokenizer
        asked = (f"{encoder.name}_config", encoder.name, f"{name}_vocab", f"{name}_merges")
        check_clip(
            *(Path(model_io.hf_hub_download(spec.text_repository, table[key])) for key in asked)
        )
        model = model_io.load_text_encoder(
            spec.text_repository, float16=dtype != mx.float32, model_key=encoder.name
        )
        tokenizer = model_io.load_tokenizer(
            spec.text_repository,
            vocab_key=f"{name}_vocab",
            merges_key=f"{name}_merges",
            pad_with_eos=encoder.pad_with_eos,
        )
    reader.check(_parameters(model))
    tokenizer.max_length = model.max_length
    return model, tokenizer


@counted_as("loading")
def load_t5(spec: ModelSpec, dtype: mx.Dtype) -> tuple[nn.Module, t5.T5Tokenizer]:
    """T5-XXL's encoder and tokenizer (19 GB in float32: optional, see `text.t5`).

    Not in DiffusionKit's low-memory mode, in which the encoder serves one call: it drops its layers
    and answers every later one with noise.
    """
    kit = import_diffusionkit()
    with _loaders(spec, dtype) as (model_io, reader):
        encoder = model_io.load_t5_encoder(
            spec.text_repository, float16=dtype != mx.float32, low_memory_mode=False
        )
        tokens = model_io.hf_hub_download(t5.REPOSITORY, t5.TOKENS)
    reader.check(_parameters(encoder))
    return encoder, t5.T5Tokenizer(tokens, kit.T5_MAX_LENGTH[spec.repository])
