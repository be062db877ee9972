"""Files that are either complete or absent: atomic writing, named JSON formats, checked tensors.

Every artifact is written to a temporary name in its own folder and renamed, so a kill at any
moment leaves the old file or none. Reading checks what can be checked cheaply and says what to do.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .backend import mx
from .errors import UserError


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is renamed, on failure removed.

    The temporary name keeps the suffix (MLX chooses a file's format by it) and starts with a dot.

    Raises:
        UserError: the disk is full or its quota is used up.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.partial{target.suffix}")
    try:
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                f"The disk is full: {target} could not be written. Nothing finished was lost: "
                "free some space and run the same command again."
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_json(
    path: str | os.PathLike[str], format_name: str, payload: Mapping[str, Any], version: int = 1
) -> None:
    """Writes `payload` with its format's name and version; NaN and infinity are refused."""
    document = {"format": format_name, "version": version, **payload}
    write_text(path, json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: str | os.PathLike[str], format_name: str, version: int = 1) -> dict[str, Any]:
    """Reads a JSON document and checks that it is the named format.

    Raises:
        UserError: not JSON, another format, or a version this release cannot read.
    """
    try:
        document = json.loads(Path(path).read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): delete it and run again.") from error
    found = document.get("format") if isinstance(document, dict) else None
    if found != format_name:
        raise UserError(f"{path} holds {found!r} where {format_name!r} is expected.")
    if document.get("version") != version:
        raise UserError(
            f"{path} is {format_name} version {document.get('version')}, this release reads "
            f"version {version}: delete it and run again."
        )
    return document


def check_safetensors(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The header of a safetensors file, after checking that the file holds all that it announces.

    A truncated download fails here with a message, and not later inside a memory map.

    Raises:
        UserError: missing, truncated, or no safetensors file.
    """
    path = Path(path)
    advice = "Download or make it again."
    if not path.is_file():
        raise UserError(f"There is no file {path}. {advice}")
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size - 8:
                raise UserError(f"{path} is truncated or no safetensors file. {advice}")
            header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no safetensors file. {advice}") from error
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise UserError(f"{path} is truncated: {size} bytes of {expected}. {advice}")
    return header


def save_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, mx.array],
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Writes tensors with sorted names, so that equal contents give equal files.

    Args:
        tensors: name -> array of any shape and dtype.
        metadata: name -> string, or anything JSON can hold (stored as JSON text).
    """
    texts = {
        key: value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        for key, value in (metadata or {}).items()
    }
    ordered = {name: tensors[name] for name in sorted(tensors)}
    mx.eval(list(ordered.values()))
    with atomic_path(path) as temporary:
        try:
            mx.save_safetensors(str(temporary), ordered, metadata={"format": "mlx", **texts})
            check_safetensors(temporary)
        except (RuntimeError, UserError) as error:
            # MLX reports a failed write without its errno, or not at all.
            raise OSError(errno.ENOSPC, f"{path}: {error}") from error


def load_tensors(path: str | os.PathLike[str]) -> dict[str, mx.array]:
    """Name -> lazily loaded array; see `check_safetensors` for the errors."""
    check_safetensors(path)
    tensors = mx.load(str(path))
    assert isinstance(tensors, dict)
    return tensors


def load_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The strings that `save_tensors` stored beside the tensors."""
    return dict(check_safetensors(path).get("__metadata__", {}))


def sha256(path: str | os.PathLike[str]) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
