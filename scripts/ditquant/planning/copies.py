"""Results that came from elsewhere: by `cp -r`, an archive, another checkout, another machine.

Snakemake goes by dates, and a copy has new ones. It goes by its own records in `.snakemake`, and
results may come without these. So before Snakemake plans, files that are new in this place are
compared with the records that their jobs left beside them (`records`), by the digests that the
files carry; no artifact's content is read. Then

* a file whose inputs are those that it was made from is dated no earlier than they are;
* Snakemake's records are filled in from those of the jobs, so that it redoes what another
  configuration made;
* a file is disowned, which makes Snakemake redo it, where something else lies in the place of one
  of its inputs, or where no record tells how it was made.

Contents never change, so dry runs do it too: their plan is that of the run to follow. A file that
was only touched is left to Snakemake. What was found is noted in `.snakemake/ditquant`; where
nothing is new, that costs one walk through the run's folders.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from ..errors import UserError
from ..files import write_text
from ..records import FOLDER, TIMESTAMP, Record, content_digest, read_records, size_of
from .snakemake_records import SnakemakeRecords

# A shard of prompts may have grown since a row of it was read; see rules/inputs/model.smk.
_GROWING = "conditioning"
NOTES = Path(".snakemake") / "ditquant"

State = tuple[int, int]


def _dated(path: str) -> str:
    """The file whose time counts for Snakemake: a folder that is an output has one inside."""
    return f"{path}/{TIMESTAMP}" if os.path.isdir(path) else path


def _state(path: str) -> State:
    """Inode and time in ns."""
    return os.stat(path).st_ino, os.stat(_dated(path)).st_mtime_ns


def _states(folder: str | Path) -> Iterator[tuple[str, State]]:
    """Path and state of the records below a run's folder, and of every file that may be an output.

    A folder that is an output is one path. Logs, benchmarks and what is hidden are no outputs.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            is_hidden = entry.name.startswith(".") and entry.name != FOLDER
            if is_hidden or entry.is_symlink() or entry.name.endswith((".log", ".tsv")):
                continue
            if entry.is_dir() and not os.path.exists(f"{entry.path}/{TIMESTAMP}"):
                yield from _states(entry.path)
            else:
                yield entry.path, _state(entry.path)


def _noted(file: Path) -> dict[str, State]:
    """What was found here before: path -> state."""
    with suppress(OSError, ValueError, AttributeError, TypeError):
        found = json.loads(file.read_bytes())
        return {path: (inode, time) for path, (inode, time) in found.items()}
    return {}


class _Run:
    """The files of a run, and the records of the jobs that made them."""

    def __init__(self, folder: Path) -> None:
        self.records = dict(read_records(folder))
        self._of: dict[str, list[Path]] = {}
        for file, record in self.records.items():
            for path in record.outputs:
                self._of.setdefault(path, []).append(file)
        self._digests: dict[str, str | None] = {}
        self._times: dict[str, int] = {}
        self.undated: list[str] = []

    def digest(self, path: str) -> str | None:
        """Digest of what lies there; None: nothing does."""
        if path not in self._digests:
            self._digests[path] = None
            with suppress(OSError):
                self._digests[path] = content_digest(path)
        return self._digests[path]

    def record_file(self, path: str) -> Path | None:
        """The record of the very file that lies there."""
        for file in self._of.get(path, ()):
            output = self.records[file].outputs[path]
            with suppress(OSError):
                if output.size == size_of(Path(path)) and output.digest == self.digest(path):
                    return file
        return None

    def is_recorded(self, path: str) -> bool:
        """Whether a job recorded that it wrote a file there, be it this one or another."""
        return path in self._of

    def exchanged(self, record: Record) -> str | None:
        """An input of a job in whose place something else lies now."""
        for path, digest in record.inputs:
            if f"/{_GROWING}/" not in path and self.digest(path) not in (None, digest):
                return path
        return None

    def date(self, path: str) -> int:
        """Time of a file in ns, once it is no earlier than those of the inputs it was made from."""
        if path not in self._times:
            time, file = _state(path)[1], self.record_file(path)
            inputs = self.records[file].inputs if file else ()
            same = [name for name, digest in inputs if self.digest(name) == digest]
            newest = max((self.date(name) for name in same), default=0)
            if newest > time:
                self.set_time(path, newest)
            self._times[path] = max(time, newest)
        return self._times[path]

    def set_time(self, path: str, time: int) -> None:
        try:
            os.utime(_dated(path), ns=(time, time))
        except OSError:
            self.undated.append(path)


def _judge(
    run: _Run, snakemake: SnakemakeRecords, folder: Path, states: Mapping[str, State]
) -> None:
    """Disowns what was made from other inputs than those that are there, and dates the rest."""
    for file, record in run.records.items():
        paths = [path for path in record.outputs if run.record_file(path) == file]
        other = run.exchanged(record) if paths else None
        for path in paths:
            if other:
                snakemake.disown(path, f"made from another {other} than the one that is there")
            else:
                run.date(path)
    # Snakemake dates a job by its oldest file, and a benchmark is one of them.
    newest = max(_state(path)[1] for path in states)
    for benchmark in map(str, (folder / "benchmarks").rglob("*.tsv")):
        if _state(benchmark)[1] < newest:
            run.set_time(benchmark, newest)


def recognise_copies(folder: Path) -> list[str]:
    """Prepares Snakemake's planning of a run whose files may have come from elsewhere.

    Args:
        folder: `results/{run}`, from where Snakemake runs.

    Returns:
        Warnings for the user.
    """
    if not folder.is_dir():
        return []
    notes = NOTES / f"{folder.name}.json"
    noted, states = _noted(notes), dict(_states(folder))
    new = {path for path, state in states.items() if noted.get(path) != state}
    snakemake = SnakemakeRecords()
    lost = {
        path for path in states.keys() - new
        if f"/{FOLDER}/" not in path and not snakemake.is_known(path)
    }  # fmt: skip
    if not new | lost:
        return []
    run = _Run(folder)
    # A record may come, or come back, after its files.
    told = {path for file, one in run.records.items() if str(file) in new for path in one.outputs}
    unfinished = snakemake.unfinished(new | lost)
    outputs = [
        path for path in (new | lost | (told & states.keys())) - unfinished
        if f"/{FOLDER}/" not in path
    ]  # fmt: skip
    copied = False
    for path in outputs:
        file = run.record_file(path)
        if file is None:
            if run.is_recorded(path) or not snakemake.is_known(path):
                snakemake.disown(path, "no record tells how this file was made")
            continue
        record, inode = run.records[file], states[path][0]
        if path in noted and noted[path][0] == inode:
            # Written over, with its record, or unknown to Snakemake; else it was only touched.
            arrived = str(file) in new or path in lost
        else:
            made_here = record.outputs[path].inode == inode
            arrived = not (made_here and snakemake.agrees(path, record))
        if arrived:
            copied = True
            if not snakemake.agrees(path, record):
                snakemake.take_over(path, record)
    if copied:
        _judge(run, snakemake, folder, states)
    with suppress(OSError, UserError):  # a place that cannot be written is looked at anew each time
        seen = {path: _state(path) for path in states if path not in unfinished}
        write_text(notes, json.dumps(seen))
    if not run.undated:
        return []
    return [
        f"{len(run.undated)} files below {folder} were copied here and cannot be dated as their "
        f"originals were, such as {run.undated[0]}: what follows from them may be planned again. "
        "Copy them with your own account, into a folder that can be written."
    ]
