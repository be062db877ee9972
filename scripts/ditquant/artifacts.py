"""Artifacts: what jobs write for each other and for people, sealed and checked.

`files` keeps files complete or absent, and `seals` tells whole files from damaged ones. This module
reads and writes tensors, JSON documents and pictures. Tensors are in the safetensors layout, with
sorted keys, so that equal contents give equal bytes. Every tensor has its own digest: a job that
needs the tensors of one block reads and checks only those.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from .backend import are_finite, mx
from .errors import UserError
from .files import atomic_path, write_bytes
from .provenance import KEY, current, with_note
from .seals import (
    blank_seal,
    check_file,
    check_seal,
    checked_json,
    damaged,
    digest_of,
    header_bytes,
    seal_file,
    sealed_json,
)

# Names of dtypes in a safetensors header. numpy lacks bfloat16, whose bits travel as uint16.
_DTYPES = {
    "BOOL": mx.bool_, "U8": mx.uint8, "I8": mx.int8, "U16": mx.uint16, "I16": mx.int16,
    "U32": mx.uint32, "I32": mx.int32, "U64": mx.uint64, "I64": mx.int64,
    "F16": mx.float16, "BF16": mx.bfloat16, "F32": mx.float32,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# Bytes that a thread digests at once.
_PIECE, _THREADS = 1 << 24, 4
_FLOATS = (mx.float16, mx.bfloat16, mx.float32)
# Keys of the metadata that are not the caller's.
_OWN_KEYS = frozenset({"digest", "digests", "ditquant", "version", "file", KEY})


# ------------------------------------------------------------------------------------- documents


def _not_finite(value: Any, where: str = "") -> str | None:
    """Path of the first number in a JSON document that is NaN or infinite."""
    if isinstance(value, float) and not math.isfinite(value):
        return where
    items: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(value, Mapping):
        items = iter(value.items())
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    found = (_not_finite(one, f"{where}.{key}" if where else str(key)) for key, one in items)
    return next((path for path in found if path is not None), None)


def _refuse_numbers(path: str | Path, document: Mapping[str, Any]) -> None:
    place = _not_finite(document)
    if place is not None:
        raise UserError(
            f"{path} was not written: {place} is not a finite number. Something before it went "
            "wrong; look at the log, and try model.dtype: float32."
        )


def write_json(path: str | Path, kind: str, payload: Mapping[str, Any]) -> None:
    """Writes a sealed document of the format `kind` (`seals.VERSIONS`).

    Raises:
        UserError: a number in it is NaN or infinite, or the disk is full.
    """
    _refuse_numbers(path, payload)
    made = {KEY: current()} if current() else {}
    write_bytes(path, sealed_json({**blank_seal(path, kind), **made, **payload}, indent=1))


def read_json(path: str | Path, kind: str) -> dict[str, Any]:
    """Reads a document that `write_json` wrote.

    Raises:
        UserError: missing, damaged, another format, or a version this release cannot read.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no file {path}: run the command that makes it.")
    document = checked_json(path, path.read_bytes())
    check_seal(path, kind, document["format"], document["version"], document.get("file", ""))
    return document


# ------------------------------------------------------------------------------ pictures and pages


def write_file(path: str | Path, data: bytes, kind: str) -> None:
    """Writes a PNG, GIF, SVG or HTML file with a seal in it; programs that show it pass over it."""
    write_bytes(path, seal_file(path, with_note(data, Path(path).suffix), kind))


def read_file(path: str | Path, kind: str) -> bytes:
    """Reads what `write_file` wrote.

    Raises:
        UserError: missing, damaged, another kind, or a version this release cannot read.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no file {path}: run the command that makes it.")
    data = path.read_bytes()
    check_file(path, data, kind)
    return data


# --------------------------------------------------------------------------------------- tensors


def _refuse_non_finite(path: str | Path, tensors: Mapping[str, mx.array]) -> None:
    floats = [name for name, array in tensors.items() if array.dtype in _FLOATS]
    fine = are_finite([tensors[name] for name in floats])
    wrong = [name for name, is_fine in zip(floats, fine, strict=True) if not is_fine]
    if wrong:
        names = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise UserError(
            f"{path} was not written: NaN or infinity in {names}. Try model.dtype: float32, and "
            "check that the model's checkpoint is whole."
        )


def _digest(values: np.ndarray) -> str:
    """Digest of an array's bytes; of a long one that of its pieces' digests, by several threads."""
    data = values.view(np.uint8).data
    if len(data) <= _PIECE:
        return digest_of(data)
    with ThreadPoolExecutor(_THREADS) as pool:
        starts = range(0, len(data), _PIECE)
        digests = pool.map(lambda start: digest_of(data[start : start + _PIECE]), starts)
        return digest_of("".join(digests).encode())


def _content(array: mx.array) -> np.ndarray:
    """The bytes of an evaluated array, rows first, as uint8."""
    if array.dtype == mx.bfloat16:
        array = array.view(mx.uint16)
    return np.ascontiguousarray(np.array(array, copy=False)).reshape(-1).view(np.uint8)


def save_tensors(
    path: str | Path,
    tensors: Mapping[str, mx.array],
    kind: str,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Writes a sealed safetensors file; equal contents give equal bytes.

    Args:
        tensors: name -> array of any shape, of a dtype up to 32 bits or integers of 64.
        kind: the format (`seals.VERSIONS`).
        metadata: name -> string, or anything JSON can hold (stored as JSON text).

    Raises:
        UserError: a value is NaN or infinite, or the disk is full.
    """
    # Large items first, so that every tensor is aligned to its own size.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.size, name))
    mx.eval([tensors[name] for name in names])
    _refuse_non_finite(path, tensors)
    _refuse_numbers(path, metadata or {})
    entries, end = {}, 0
    for name in names:
        array = tensors[name]
        start, end = end, end + array.nbytes
        entries[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [start, end],
        }
    texts = {
        key: value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        for key, value in sorted((metadata or {}).items())
    }
    assert not _OWN_KEYS & set(texts), "these keys of the metadata are taken"
    made = {KEY: json.dumps(current(), sort_keys=True)} if current() else {}

    def header(digests: Mapping[str, str]) -> bytes:
        seal = blank_seal(path, kind)
        own = {
            "digest": seal["digest"],
            "digests": json.dumps(digests, separators=(",", ":")),
            "ditquant": kind,
            "file": seal.get("file", ""),
            "format": "mlx",
            "version": str(seal["version"]),
        }
        return sealed_json({"__metadata__": {**own, **made, **texts}, **entries})

    with atomic_path(path) as temporary, temporary.open("r+b") as file:
        blank = header(dict.fromkeys(names, digest_of(b"")))
        padding = -len(blank) % 8
        length = len(blank) + padding
        file.seek(8 + length)
        digests = {}
        for name in names:
            content = _content(tensors[name])
            digests[name] = _digest(content)
            file.write(content.data)
        file.seek(0)
        file.write(length.to_bytes(8, "little") + header(digests) + b" " * padding)


@cache
def _header(path: Path, identity: tuple[int, int, int]) -> dict[str, Any]:
    data = header_bytes(path)
    header = checked_json(path, data.rstrip(b" "))
    if data.rstrip(b" ") + b" " * (-len(data.rstrip(b" ")) % 8) != data:
        raise damaged(path, "its header has another length")
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    if path.stat().st_size != 8 + len(data) + max(ends, default=0):
        raise damaged(path, "it is truncated")
    return header


def _read_header(path: str | Path, kind: str) -> dict[str, Any]:
    """The checked header of what `save_tensors` wrote."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no file {path}: run the command that makes it.")
    status = path.stat()
    header = _header(path, (status.st_ino, status.st_size, status.st_mtime_ns))
    seal = header["__metadata__"]
    check_seal(path, kind, seal["ditquant"], int(seal["version"]), seal["file"])
    return header


def _fits(values: np.ndarray, digest: str) -> bool:
    return _digest(values) == digest


class Tensors(Mapping[str, mx.array]):
    """The tensors of a file by name; each is read, and its digest compared, when it is first taken.

    Raises:
        UserError: missing or damaged, another kind, or a version this release cannot read.
    """

    def __init__(self, path: str | Path, kind: str):
        header = _read_header(path, kind)
        self._path = Path(path)
        self._digests = json.loads(header["__metadata__"]["digests"])
        self._entries = {name: one for name, one in header.items() if name != "__metadata__"}
        self._start = 8 + len(header_bytes(path))
        self._taken: dict[str, mx.array] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> mx.array:
        if name not in self._taken:
            self._taken[name] = self._read(name)
        return self._taken[name]

    def _read(self, name: str) -> mx.array:
        entry = self._entries[name]
        start, end = entry["data_offsets"]
        dtype = _DTYPES[entry["dtype"]]
        stored = "uint16" if dtype == mx.bfloat16 else str(dtype).removeprefix("mlx.core.")
        with self._path.open("rb") as file:
            file.seek(self._start + start)
            values = np.fromfile(file, dtype=stored.rstrip("_"), count=(end - start) // dtype.size)
        if not _fits(values, self._digests[name]):
            raise damaged(self._path, f"the digest of {name} does not match its content")
        array = mx.array(values).reshape(entry["shape"])
        return array.view(mx.bfloat16) if dtype == mx.bfloat16 else array


def load_tensors(path: str | Path, kind: str) -> Tensors:
    """Name -> array of what `save_tensors` wrote; see `Tensors` for the errors."""
    return Tensors(path, kind)


def load_metadata(path: str | Path, kind: str) -> dict[str, str]:
    """The strings that `save_tensors` stored beside the tensors; see `Tensors` for the errors."""
    metadata: dict[str, str] = _read_header(path, kind)["__metadata__"]
    return {key: value for key, value in metadata.items() if key not in _OWN_KEYS}


def stored_bytes(path: str | Path, kind: str) -> int:
    """Bytes that the tensors of a file take."""
    header = _read_header(path, kind)
    return sum(
        entry["data_offsets"][1] - entry["data_offsets"][0]
        for name, entry in header.items()
        if name != "__metadata__"
    )
