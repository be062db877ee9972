"""Seals: what tells a whole artifact from a damaged, foreign or outdated one.

Every file that the workflow writes and reads again carries the name of its format, the format's
version and a digest of its content (XXH3, 128 bits, by xxhash). Where the seal stands depends on
the kind of file:

    .safetensors        in the header's metadata, beside a digest of each tensor
    .json               as the document's first keys
    .png, .gif          in a text chunk, a comment block
    .svg, .html         in a comment at the end

A digest covers the bytes of the file with the digest's own place filled with zeros. Beside it
stands the file's place below results/{run}/, which tells a file that was exchanged for another of
its kind. This module reads and writes bytes; it imports neither MLX nor numpy, so that planning
can use it.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import xxhash

from .errors import UserError

# Every format and its version. A change that an older release would misread raises the version.
VERSIONS = {
    "ditquant.activation_statistics": 2,
    "ditquant.block_io": 1,
    "ditquant.block_result": 2,
    "ditquant.block_weights": 1,
    "ditquant.calibration": 1,
    "ditquant.calibration_manifest": 1,
    "ditquant.checkpoint": 1,
    "ditquant.checkpoint_weights": 1,
    "ditquant.clip_errors": 1,
    "ditquant.comparison": 1,
    "ditquant.conditioning": 1,
    "ditquant.demo.latents": 1,
    "ditquant.demo.mmdit": 1,
    "ditquant.demo.training": 1,
    "ditquant.demo.vae": 1,
    "ditquant.diff_stats": 1,
    "ditquant.evaluation": 1,
    "ditquant.export": 1,
    "ditquant.image_difference": 1,
    "ditquant.input_ranges": 1,
    "ditquant.latents": 1,
    "ditquant.layer_statistics": 1,
    "ditquant.layer_temporal_analysis": 1,
    "ditquant.learning_state": 1,
    "ditquant.model_weights": 1,
    "ditquant.picture": 1,
    "ditquant.plot": 1,
    "ditquant.quant_config": 1,
    "ditquant.record": 1,
    "ditquant.reference": 1,
    "ditquant.reference_blocks": 1,
    "ditquant.report": 1,
    "ditquant.timing": 1,
    "ditquant.tuned_weights": 1,
    "ditquant.tuning": 2,
    "ditquant.velocity_sensitivity": 1,
}

BLANK = "0" * 32
# The keys of a document that are its seal.
SEAL_KEYS = frozenset({"digest", "format", "version", "file"})
# The kinds of files that carry a seal.
SEALED = frozenset({".safetensors", ".json", ".png", ".gif", ".svg", ".html"})
# Quotation marks inside of JSON strings are escaped: this matches a key alone.
_IN_JSON = re.compile(rb'"digest": ?"([0-9a-f]{32})"')
_IN_TEXT = re.compile(rb"(ditquant\.[a-z_.]+) (\d+) ([0-9a-f]{32})((?: [\w./-]+)?);")
# A seal stands so near to the beginning or the end of a file.
_NEAR = 1024
_LARGEST_HEADER = 100_000_000


def digest_of(data: bytes | bytearray | memoryview) -> str:
    """32 hexadecimal digits of some bytes."""
    return xxhash.xxh3_128_hexdigest(data)


def file_digest(path: str | Path) -> str:
    """The same of a file's bytes, read in parts."""
    hasher = xxhash.xxh3_128()
    with Path(path).open("rb") as file:
        while part := file.read(1 << 22):
            hasher.update(part)
    return hasher.hexdigest()


def damaged(path: str | Path, what: str) -> UserError:
    """The error for a file that is not what was written."""
    return UserError(f"{path} is damaged ({what}): delete it and run the same command again.")


def place_of(path: str | Path) -> str:
    """A file's path below results/{run}/; empty for a file elsewhere."""
    parts = Path(path).parts
    if "results" not in parts:
        return ""
    start = len(parts) - parts[::-1].index("results")
    return "/".join(parts[start + 1 :])


def missing(path: str | Path) -> UserError:
    """The error for a file that is not there."""
    return UserError(f"There is no file {path}: run the command that makes it.")


def check_place(path: str | Path, place: str) -> None:
    """Checks that a file lies where it was written.

    Raises:
        UserError: it does not.
    """
    if place and place_of(path) not in ("", place):
        raise UserError(
            f"{path} was written as {place} and is in the wrong place: delete it and run the "
            "same command again."
        )


def check_seal(path: str | Path, kind: str, found: str, version: int, place: str) -> None:
    """Compares what a file says of itself with what is expected.

    Args:
        kind: the expected format.
        found, version, place: from the seal.

    Raises:
        UserError: another format, a version that this release does not read, or a file that was
            written for another place.
    """
    advice = "delete it and run the same command again."
    if found != kind:
        raise UserError(f"{path} holds {found} where {kind} is expected: {advice}")
    if version != VERSIONS[kind]:
        raise UserError(
            f"{path} is {kind} version {version}, this release reads version {VERSIONS[kind]}: "
            f"{advice}"
        )
    check_place(path, place)


# ------------------------------------------------------------------------- headers and documents


def _filled(data: bytes, digest: str) -> bytes:
    """`data` with its first digest replaced."""
    found = _IN_JSON.search(data)
    assert found is not None, "the seal's place is missing"
    return data[: found.start(1)] + digest.encode() + data[found.end(1) :]


def sealed_json(document: dict[str, Any], indent: int | None = None) -> bytes:
    """JSON text of a document in which "digest" holds `BLANK`, the first key of that name.

    Raises:
        ValueError: NaN or infinity in it.
    """
    separators = (",", ":") if indent is None else None
    text = json.dumps(
        document, indent=indent, separators=separators, allow_nan=False, ensure_ascii=False
    )
    data = text.encode("utf-8") + (b"" if indent is None else b"\n")
    return _filled(data, digest_of(data))


def checked_json(path: str | Path, data: bytes) -> dict[str, Any]:
    """The document in `data`, after its digest was compared.

    Raises:
        UserError: damaged, or never sealed.
    """
    found = _IN_JSON.search(data)
    if found is None:
        raise damaged(path, "it is empty" if not data else "it has no digest")
    if digest_of(_filled(data, BLANK)) != found[1].decode():
        raise damaged(path, "its digest does not match its content")
    try:
        document = json.loads(data)
    except ValueError as error:
        raise damaged(path, "no JSON") from error
    if not isinstance(document, dict):
        raise damaged(path, "no JSON object")
    return document


def blank_seal(path: str | Path, kind: str) -> dict[str, Any]:
    """First keys of a document that is about to be sealed and written to `path`."""
    place = place_of(path)
    return {
        "digest": BLANK,
        "format": kind,
        "version": VERSIONS[kind],
        **({"file": place} if place else {}),
    }


def header_bytes(path: str | Path) -> bytes:
    """The header of a safetensors file.

    Raises:
        UserError: missing, shorter than it says, or no safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise missing(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(size - 8, _LARGEST_HEADER):
            raise damaged(path, "it is truncated or no safetensors file")
        return file.read(length)


# ---------------------------------------------------------------------------- pictures and pages


def _chunk(text: bytes) -> bytes:
    """A PNG chunk of text (PNG specification, 11.3.4.3)."""
    body = b"tEXtditquant\0" + text
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


def annotated(data: bytes, suffix: str, text: str) -> bytes:
    """A picture or page with a text inserted where programs pass over it, behind earlier ones.

    Args:
        suffix: of its name; a GIF file takes 255 characters.
        text: ASCII, without double hyphens.
    """
    note = text.encode("ascii")
    if suffix == ".png":  # before the chunk IEND, which has 12 bytes
        return data[:-12] + _chunk(note) + data[-12:]
    if suffix == ".gif":  # a comment extension before the trailer, one byte
        return data[:-1] + b"\x21\xfe" + bytes([len(note)]) + note + b"\0" + data[-1:]
    return data + b"<!-- " + note + b" -->\n"


def seal_file(path: str | Path, data: bytes, kind: str) -> bytes:
    """The content of a PNG, GIF, SVG or HTML file with a seal in it."""
    suffix, place = Path(path).suffix, place_of(path)
    start, end = f"{kind} {VERSIONS[kind]}", f" {place};" if place else ";"
    digest = digest_of(annotated(data, suffix, f"{start} {BLANK}{end}"))
    return annotated(data, suffix, f"{start} {digest}{end}")


def _last_seal(path: str | Path, data: bytes) -> re.Match[bytes]:
    matches = list(_IN_TEXT.finditer(data, max(0, len(data) - _NEAR)))
    if not matches:
        raise damaged(path, "it has no seal" if data else "it is empty")
    return matches[-1]


def sealed_kind(path: str | Path, data: bytes) -> str:
    """The format that a PNG, GIF, SVG or HTML file is said to have."""
    kind = _last_seal(path, data)[1].decode()
    if kind not in VERSIONS:
        raise damaged(path, f"there is no format {kind}")
    return kind


def check_file(path: str | Path, data: bytes, kind: str) -> None:
    """Checks what `seal_file` made.

    Raises:
        UserError: damaged, of another kind or version, or written for another place.
    """
    found = _last_seal(path, data)
    text, suffix = found[0].decode(), Path(path).suffix
    # What is left without the seal must give the file again, and with a blank digest its digest.
    tail = {".png": 12, ".gif": 1}.get(suffix, 0)
    cut = max(0, len(data) - tail - len(annotated(b"", suffix, text)))
    plain = data[:cut] + data[len(data) - tail :]
    blank = text.replace(found[3].decode(), BLANK)
    if annotated(plain, suffix, text) != data:
        raise damaged(path, "its seal is incomplete")
    if digest_of(annotated(plain, suffix, blank)) != found[3].decode():
        raise damaged(path, "its digest does not match its content")
    check_seal(path, kind, found[1].decode(), int(found[2]), found[4].decode().strip())


# ---------------------------------------------------------------------------------- any of these


def recorded_digest(path: str | Path) -> str:
    """The digest that an artifact carries; its content is neither read nor checked.

    Raises:
        UserError: missing, or a file without a digest.
    """
    path = Path(path)
    if not path.is_file():
        raise missing(path)
    is_document = path.suffix in (".safetensors", ".json")
    with path.open("rb") as file:
        if not is_document:
            file.seek(max(0, path.stat().st_size - _NEAR))
        part = file.read(_NEAR)
    if not is_document:
        return _last_seal(path, part)[3].decode()
    found = _IN_JSON.search(part)
    if found is None:
        raise damaged(path, "it has no digest")
    return found[1].decode()
