"""What tells one checkpoint from another: its content, wherever and whenever it was copied.

Planning asks for it in every process, so the digest of a large file is noted in `.snakemake`, with
the size, time and inode that the file had when it was read.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import write_text
from ..seals import digest_of, file_digest
from .files import clip_files
from .spec import ModelSpec

NOTES = Path(".snakemake") / "ditquant" / "checkpoints.json"
# Smaller files are read each time, in less than a tenth of a second.
_NOTED_BYTES = 256 * 2**20


def checkpoint_identity(spec: ModelSpec) -> str:
    """Digest of the checkpoint's file; for one of the hub the key in DiffusionKit's tables."""
    return spec.repository if spec.checkpoint is None else _identity(spec.checkpoint)


def text_identity(spec: ModelSpec) -> str:
    """The same of the text encoders: of their weights, configurations and tokenizers."""
    if spec.folder is None:
        return spec.text_repository
    files = [path for one in spec.text.encoders for path in clip_files(spec.folder, one)]
    return digest_of("".join(map(_identity, files)).encode())


def _notes() -> dict[str, Any]:
    with suppress(OSError, ValueError):
        found = json.loads(NOTES.read_bytes())
        if isinstance(found, dict):
            return found
    return {}


def _identity(path: Path) -> str:
    if not path.is_file():
        return path.name
    status = path.stat()
    if status.st_size <= _NOTED_BYTES:
        return file_digest(path)
    state = {"size": status.st_size, "time": status.st_mtime_ns, "inode": status.st_ino}
    notes, key = _notes(), str(path.resolve())
    noted = notes.get(key)
    if isinstance(noted, dict) and {**noted, **state} == noted and "digest" in noted:
        return str(noted["digest"])
    digest = file_digest(path)
    with suppress(OSError, UserError):  # where nothing can be noted, it is read again next time
        write_text(NOTES, json.dumps({**notes, key: {**state, "digest": digest}}))
    return digest
