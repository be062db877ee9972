"""Safetensors files byte by byte: types that MLX does not write, and headers that are wrong."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_NAMES = {"float16": "F16", "float32": "F32", "int8": "I8", "uint8": "U8", "float64": "F64"}

Entry = tuple[str, np.ndarray]


def entry(array: np.ndarray, dtype: str | None = None) -> Entry:
    """An array as it is, or its bytes as another type of the same width."""
    return dtype or _NAMES[str(array.dtype)], array


def write_raw(path: Path, header: bytes, data: bytes = b"", length: int | None = None) -> Path:
    """A file of this header; `length` is what the file says that its length is."""
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path


def write_tensors(path: Path, tensors: Mapping[str, Entry]) -> Path:
    """A sound file."""
    header: dict[str, Any] = {}
    parts, place = [], 0
    for name, (dtype, array) in tensors.items():
        part = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": dtype,
            "shape": list(array.shape),
            "data_offsets": [place, place + len(part)],
        }
        parts.append(part)
        place += len(part)
    return write_raw(path, json.dumps(header).encode(), b"".join(parts))
