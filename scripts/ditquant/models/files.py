"""Files of models that others made: whether they are whole, before anything is read from them.

The workflow asks this module while it plans, so it imports neither MLX nor DiffusionKit. A header
of safetensors is checked in full: MLX reads past most of what can be wrong in one, and gives
numbers.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from .spec import ModelSpec, TextEncoder

# Bits of a value, of the types that are read here.
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F16": 16, "BF16": 16, "F32": 32, "C64": 64,
}  # fmt: skip
# The limit of the format's own library; SD3-medium's header has 140 kB.
_LONGEST_HEADER = 100_000_000
_METADATA = "__metadata__"


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies in its file: dtype as the format names it, and bytes from `begin` on."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def advice(path: Path) -> str:
    """What to do about a damaged file: the hub's are downloaded again once they are gone."""
    if path.is_symlink() and "snapshots" in path.parts:
        return f"Delete {path.resolve()}, and it is downloaded again."
    return "Download or make it again."


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} appears twice")
    return document


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 0


def _stored(name: str, entry: Any, data: int) -> Stored:
    """A header's entry; offsets count from `data`, where the header ends."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"its entry {name!r} has no dtype, shape and data_offsets") from error
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise ValueError(f"{name} has dtype {dtype!r}, which is not read here: convert it to F16")
    if not (isinstance(shape, list) and all(map(_is_size, shape))):
        raise ValueError(f"{name} has shape {shape!r}")
    if not (_is_size(begin) and _is_size(end) and begin <= end):
        raise ValueError(f"{name} has offsets {begin!r} to {end!r}")
    size = math.prod(shape) * _BITS[dtype] // 8
    if end - begin != size:
        raise ValueError(f"{name} has {end - begin} bytes, and its shape {shape} is {size} of them")
    return Stored(dtype, tuple(shape), data + begin, data + end)


def read_header(path: str | os.PathLike[str]) -> dict[str, Stored]:
    """Name -> place of each tensor of a safetensors file, after checking that the file is sound.

    Sound as the format has it: a JSON object in UTF-8 in which no name stands twice; types that are
    known; as many bytes as shape and type say; tensors one behind the other from the header's end
    to the file's, without gap or overlap (https://github.com/huggingface/safetensors).

    Raises:
        UserError: there is no such file, or it is not sound; names the tensor.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no file {path}. {advice(path)}")
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size - 8, _LONGEST_HEADER):
                raise UserError(
                    f"{path} is truncated or no safetensors file: {size} bytes, of which {length} "
                    f"should be its header. {advice(path)}"
                )
            document = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_unique)
        if not isinstance(document, dict):
            raise ValueError("its header is no JSON object")
    except (struct.error, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no safetensors file ({error}). {advice(path)}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    data = 8 + length
    try:
        tensors = {
            name: _stored(name, entry, data)
            for name, entry in document.items()
            if name != _METADATA
        }
        _check_places(tensors, data, size)
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}. {advice(path)}") from error
    return tensors


def _check_places(tensors: Mapping[str, Stored], data: int, size: int) -> None:
    place, before = data, "its header"
    for name, stored in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if stored.begin != place:
            what = "overlaps" if stored.begin < place else "leaves a gap behind"
            raise ValueError(f"{name} {what} {before}")
        place, before = stored.end, name
    if size < place:
        raise ValueError(f"truncated, {size} bytes of {place}")
    if size > place:
        raise ValueError(f"{size - place} bytes too many behind {before}")


# ------------------------------------------------------------------------------ text encoders

# Numbers of a CLIP text encoder's config.json that DiffusionKit reads.
_NUMBERS = (
    "num_hidden_layers", "hidden_size", "num_attention_heads", "max_position_embeddings",
    "vocab_size",
)  # fmt: skip
_BEGIN, _END, _WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"


def read_clip_config(path: Path) -> dict[str, Any]:
    """config.json of a CLIP text encoder.

    Raises:
        UserError: missing, no JSON, or without what DiffusionKit reads; names the key.
    """
    config = _read(path, json.loads)
    for key in _NUMBERS:
        if not isinstance(config, dict) or not _is_size(config.get(key)) or not config[key]:
            raise UserError(f"{path}: {key} is missing or no number. {advice(path)}")
    kinds = config.get("architectures")
    if not (isinstance(kinds, list) and kinds and isinstance(kinds[0], str)):
        raise UserError(f"{path}: architectures is missing. {advice(path)}")
    if "WithProjection" in kinds[0] and not _is_size(config.get("projection_dim")):
        raise UserError(f"{path}: projection_dim is missing or no number. {advice(path)}")
    return config


def _read(path: Path, parse: Any) -> Any:
    """The text of a file, parsed."""
    if not path.is_file():
        raise UserError(f"There is no file {path}. {advice(path)}")
    try:
        return parse(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}). {advice(path)}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error


def _merge_lines(text: str) -> list[str]:
    """What DiffusionKit reads: one line a merge behind the version, as many as CLIP has."""
    return text.strip().split("\n")[1 : 49152 - 256 - 2 + 1]


def check_tokenizer(vocabulary: Path, merges: Path, vocab_size: int) -> None:
    """Checks that CLIP's `vocab.json` and `merges.txt` are whole and belong together.

    The vocabulary holds every byte's symbol, alone and at a word's end, what each merge joins, and
    the two ends of a text, with ids from 0 on. A list of merges that was cut off would otherwise
    split words in another way, and the text encoder read something else, without an error.

    Args:
        vocab_size: rows of the encoder's table of tokens; a larger id would read beyond it.

    Raises:
        UserError: one of the files is missing or damaged.
    """
    ids = _read(vocabulary, json.loads)
    if not isinstance(ids, dict) or not all(map(_is_size, ids.values())):
        raise UserError(f"{vocabulary} maps no tokens to ids. {advice(vocabulary)}")
    pairs = [tuple(line.split()) for line in _read(merges, _merge_lines)]
    joined = {"".join(pair) for pair in pairs}
    single = {token for token in ids if len(token.removesuffix(_WORD_END)) == 1}
    expected = joined | single | {_BEGIN, _END}
    if any(len(pair) != 2 for pair in pairs) or not joined <= set(ids):
        raise UserError(f"{merges} is damaged, or not that of {vocabulary}. {advice(merges)}")
    if set(ids) - expected:
        missing = sorted(set(ids) - expected)[0]
        raise UserError(
            f"{merges} is cut off, or not that of {vocabulary}: nothing joins {missing!r}. "
            f"{advice(merges)}"
        )
    if (
        len(single) < 512
        or sorted(ids.values()) != list(range(len(ids)))
        or not ({_BEGIN, _END} <= set(ids))
    ):
        raise UserError(f"{vocabulary} lacks tokens or ids. {advice(vocabulary)}")
    if len(ids) > vocab_size:
        raise UserError(
            f"{vocabulary} has {len(ids)} tokens, and its text encoder's table {vocab_size}: they "
            "are not of one model."
        )


def check_clip(config: Path, weights: Path, vocabulary: Path, merges: Path) -> None:
    """Checks the four files of a CLIP text encoder; see the functions above."""
    read_header(weights)
    check_tokenizer(vocabulary, merges, read_clip_config(config)["vocab_size"])


def clip_files(folder: Path, encoder: TextEncoder) -> tuple[Path, Path, Path, Path]:
    """Where a CLIP text model lies in a folder: configuration, weights, vocabulary, merges."""
    weights, tokenizer = folder / encoder.name, folder / encoder.tokenizer
    return (
        weights / "config.json", weights / "model.fp16.safetensors",
        tokenizer / "vocab.json", tokenizer / "merges.txt",
    )  # fmt: skip


def check_local_files(spec: ModelSpec) -> None:
    """Checks what a model has on this disk beside the hub's cache, without reading a weight.

    Raises:
        UserError: a file is missing or damaged.
    """
    if spec.checkpoint is not None:
        read_header(spec.checkpoint)
    if spec.folder is not None:
        for encoder in spec.text.encoders:
            check_clip(*clip_files(spec.folder, encoder))
