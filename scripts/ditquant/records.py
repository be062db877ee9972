"""Records: what every file of a run was made from, and how, beside the files themselves.

Snakemake keeps its own records in `.snakemake`, by name and date. They stay behind when results are
copied, and dates say nothing then. So each job writes a record of its own, `Record`, as JSON below
`results/{run}/.records/`: its rule and parameters, and the digests of what it read and wrote.
Planning reads them where files have come from elsewhere (`planning.copies`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .errors import UserError
from .files import write_bytes
from .seals import (
    SEALED,
    blank_seal,
    check_seal,
    checked_json,
    digest_of,
    file_digest,
    place_of,
    recorded_digest,
    sealed_json,
)

FOLDER = ".records"
KIND = "ditquant.record"
# Snakemake writes it into folders that are outputs, to date them.
TIMESTAMP = ".snakemake_timestamp"
# Values of other types are no part of Snakemake's records.
_RECORDED = (
    type(None), int, float, bool, str, complex, range, list, tuple, dict, set, frozenset, bytes,
    bytearray,
)  # fmt: skip


@dataclass(frozen=True)
class Output:
    """What a job wrote.

    Attributes:
        digest: of the content, see `content_digest`.
        size: in bytes; 0 for a folder.
        inode: number of the file where the job wrote it. A copy has another.
    """

    digest: str
    size: int
    inode: int


@dataclass(frozen=True)
class Record:
    """A job that has succeeded.

    Attributes:
        rule: its name.
        params: its parameters as Snakemake's own records have them, sorted.
        inputs: paths, relative to where Snakemake runs, and their digests; one may come twice.
        outputs: path -> what was written there.
    """

    rule: str
    params: tuple[str, ...]
    inputs: tuple[tuple[str, str], ...]
    outputs: dict[str, Output]


def content_digest(path: str | Path) -> str:
    """32 hexadecimal digits that tell one content from another.

    An artifact carries its digest, see `seals`; other files, and those of a folder, are read.

    Raises:
        OSError: there is no such file.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(
            file for file in path.rglob("*") if file.is_file() and file.name != TIMESTAMP
        )
        lines = [f"{file.relative_to(path)} {file_digest(file)}" for file in files]
        return digest_of("\n".join(lines).encode())
    if path.suffix in SEALED:
        with suppress(UserError):
            return recorded_digest(path)
    return file_digest(path)


def size_of(path: Path) -> int:
    """Bytes of a file; a folder's own size depends on the file system and does not count."""
    return 0 if path.is_dir() else path.stat().st_size


def recorded_params(params: Iterable[Any]) -> tuple[str, ...]:
    """Values of parameters as Snakemake's records have them."""
    return tuple(sorted(repr(value) for value in params if isinstance(value, _RECORDED)))


def write_record(
    rule: str, params: Iterable[Any], inputs: Iterable[str], outputs: Sequence[str]
) -> None:
    """Records a job whose outputs are complete, in the folder of the run that they belong to.

    Args:
        params, inputs, outputs: as Snakemake gives them to a script.
    """
    name = place_of(outputs[0]) if outputs else ""
    if not name:
        return
    folder = Path(str(outputs[0]).removesuffix(name))
    written = {
        str(path): Output(content_digest(path), size_of(Path(path)), os.stat(path).st_ino)
        for path in outputs
    }
    read = tuple((str(path), content_digest(path)) for path in inputs)
    record = Record(rule, recorded_params(params), read, written)
    path = folder / FOLDER / f"{name}.json"
    document = {**blank_seal(path, KIND), "run": folder.name, **asdict(record)}
    write_bytes(path, sealed_json(document))


def read_records(folder: Path) -> Iterator[tuple[Path, Record]]:
    """All records of a run's folder, by file; what is none, or damaged, is left out.

    The folder may have another name than when they were written.
    """
    for file in sorted((folder / FOLDER).rglob("*.json")):
        with suppress(OSError, UserError, KeyError):
            found = checked_json(file, file.read_bytes())
            check_seal(file, KIND, found["format"], found["version"], found["file"])
            before = f"{folder.parent}/{found['run']}/"

            def now(path: str, before: str = before) -> str:
                inside = path.startswith(before)
                return f"{folder}/{path.removeprefix(before)}" if inside else path

            yield (
                file,
                Record(
                    found["rule"],
                    tuple(found["params"]),
                    tuple((now(path), digest) for path, digest in found["inputs"]),
                    {now(path): Output(**output) for path, output in found["outputs"].items()},
                ),
            )
