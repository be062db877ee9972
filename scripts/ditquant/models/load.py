"""Loads the parts of a model separately, through DiffusionKit's own loader functions.

A job takes what it needs: the MM-DiT for trajectories and block work, the VAE decoder for
pictures, the text encoders in one job alone. Published models, local checkpoints and model folders
take the same path: DiffusionKit's tables get an entry for the specification, and file requests are
answered from disk where the file is there.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from ..artifacts import check_safetensors
from ..backend import hub_files, import_diffusionkit, mx, nn
from ..errors import UserError
from ..job_times import loading
from .spec import ModelSpec, TextEncoder

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
    arguments["hidden_size_override"] = arguments.pop("hidden_size")
    dtype = DTYPES[arguments.pop("dtype", "float32")]
    return config.MMDiTConfig(**arguments, dtype=dtype, float16_dtype=dtype, low_memory_mode=False)


def _resolver(spec: ModelSpec) -> Callable[[str, str], str | None]:
    """Answers file requests from disk where the specification has the file there."""

    def resolve(repository: str, file: str) -> str | None:
        if repository == spec.text_repository:
            return str(spec.folder / file) if spec.folder else None
        if spec.checkpoint is None:
            return None
        # The loaders always fetch the hub's config.json and never read it.
        return str(spec.checkpoint)

    return resolve


@contextmanager
def _loaders(spec: ModelSpec, dtype: mx.Dtype, checkpoint: bool = True) -> Iterator[ModuleType]:
    """DiffusionKit's `model_io` with the specification entered in its tables.

    Args:
        checkpoint: the single-file checkpoint is needed; text encoders have files of their own.

    Raises:
        UserError: a file that is missing, gated, truncated or of another model.
    """
    import_diffusionkit()
    kit_config = importlib.import_module("diffusionkit.mlx.config")
    names: dict[str, Any] = {"_FLOAT16": dtype if dtype != mx.float32 else mx.float16}
    # The loaders build the VAE from these classes' defaults, whatever the model.
    if spec.vae_decoder:
        names["VAEDecoderConfig"] = lambda: kit_config.VAEDecoderConfig(**spec.vae_decoder)
    if spec.vae_encoder:
        names["VAEEncoderConfig"] = lambda: kit_config.VAEEncoderConfig(**spec.vae_encoder)
    if checkpoint and spec.checkpoint is not None:
        check_safetensors(spec.checkpoint)
    key = spec.repository
    where = spec.checkpoint or f"{key} on the Hugging Face hub"
    with hub_files(_resolver(spec), **names) as model_io:
        files = {key: f"{spec.name}.safetensors", "vae": f"{spec.name}.safetensors"}
        text_files = model_io._MODELS[model_io._DEFAULT_MODEL]
        prefix = {
            "vae_encoder": "first_stage_model.encoder.",
            "vae_decoder": "first_stage_model.decoder.",
        }
        with (
            _entry(model_io._MMDIT, key, model_io._MMDIT.get(key, files)),
            _entry(model_io._PREFIX, key, model_io._PREFIX.get(key, prefix)),
            _entry(model_io._CONFIG, key, mmdit_config(spec)),
            _entry(
                model_io._MODELS,
                spec.text_repository,
                model_io._MODELS.get(spec.text_repository, text_files),
            ),
        ):
            try:
                yield model_io
            except (KeyError, ValueError) as error:
                reason = str(error).splitlines()[0][:200]
                raise UserError(
                    f"{where} is no checkpoint of {spec.name}: {reason}. Check model.name and "
                    "model.checkpoint in the configuration."
                ) from error
            except OSError as error:
                raise UserError(_hub_message(spec, error)) from error


def _hub_message(spec: ModelSpec, error: OSError) -> str:
    kind = type(error).__name__
    if kind == "GatedRepoError" or "401" in str(error) or "403" in str(error):
        return (
            f"{spec.repository} is gated: accept its licence on its Hugging Face page, log in with "
            "`hf auth login` (or set HF_TOKEN), and run the same command again; or set "
            "model.checkpoint to a local file."
        )
    if kind in ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError"):
        return (
            f"A file of {spec.repository} or {spec.text_repository} is not in the local cache, and "
            "the Hugging Face hub cannot be reached. Check the network and HF_HUB_OFFLINE, or set "
            "model.checkpoint to a local file."
        )
    return f"Files of {spec.repository} could not be loaded: {error}"


@loading()
def load_mmdit(spec: ModelSpec, dtype: mx.Dtype, whole: bool = True) -> nn.Module:
    """DiffusionKit's MMDiT with its weights in `dtype`.

    Args:
        whole: read all weights now, for a job that runs the network; else each when it is used.
    """
    with _loaders(spec, dtype) as model_io:
        model = model_io.load_mmdit(
            key=spec.repository,
            float16=dtype != mx.float32,
            model_key=spec.repository,
            low_memory_mode=False,
        )
    if whole:
        mx.eval(model.parameters())
    return model


@loading()
def load_vae_decoder(spec: ModelSpec, dtype: mx.Dtype) -> nn.Module:
    """DiffusionKit's VAEDecoder: latents (B, h, w, 16) -> images (B, 8h, 8w, 3) in [-1, 1]."""
    with _loaders(spec, dtype) as model_io:
        decoder = model_io.load_vae_decoder(key=spec.repository, float16=dtype != mx.float32)
    mx.eval(decoder.parameters())
    return decoder


@loading()
def load_vae_encoder(spec: ModelSpec, dtype: mx.Dtype) -> nn.Module:
    """DiffusionKit's VAEEncoder: images (B, H, W, 3) in [-1, 1] -> mean, log-variance."""
    with _loaders(spec, dtype) as model_io:
        encoder = model_io.load_vae_encoder(key=spec.repository, float16=dtype != mx.float32)
    mx.eval(encoder.parameters())
    return encoder


@loading()
def load_text_encoder(
    spec: ModelSpec, encoder: TextEncoder, dtype: mx.Dtype
) -> tuple[nn.Module, Any]:
    """One CLIP text model and its tokenizer, padded to the model's own length."""
    with _loaders(spec, dtype, checkpoint=False) as model_io:
        model = model_io.load_text_encoder(
            spec.text_repository, float16=dtype != mx.float32, model_key=encoder.name
        )
        tokenizer = model_io.load_tokenizer(
            spec.text_repository,
            vocab_key=f"{encoder.tokenizer}_vocab",
            merges_key=f"{encoder.tokenizer}_merges",
            pad_with_eos=encoder.pad_with_eos,
        )
    mx.eval(model.parameters())
    tokenizer.max_length = model.max_length
    return model, tokenizer


@loading()
def load_t5(spec: ModelSpec, dtype: mx.Dtype) -> tuple[nn.Module, Any]:
    """T5-XXL's encoder and tokenizer (19 GB in float32: optional, see `text.t5`)."""
    kit = import_diffusionkit()
    with _loaders(spec, dtype, checkpoint=False) as model_io:
        encoder = model_io.load_t5_encoder(
            spec.text_repository, float16=dtype != mx.float32, low_memory_mode=True
        )
        tokenizer = model_io.load_t5_tokenizer(kit.T5_MAX_LENGTH[spec.repository])
    mx.eval(encoder.parameters())
    return encoder, tokenizer
