"""Snakemake's own records of what was made by what, in `.snakemake`: read, and filled in.

Where Snakemake has a record of a file, it compares the rule's present parameters and inputs with
those of the record and redoes the job where they differ. Where it has none, it takes any existing
file for the right one. This is the only module that knows how Snakemake keeps its records.
"""

from __future__ import annotations

from collections.abc import Iterable

from snakemake.persistence import RECORD_FORMAT_VERSION, MetadataRecord, PersistenceBase
from snakemake.persistence.file import FilePersistence

from ..records import Record


class SnakemakeRecords:
    """The records of the folder in which Snakemake runs, by the path of an output.

    Args:
        store: Snakemake's own; None opens the one in `.snakemake` below the folder we are in.
    """

    def __init__(self, store: PersistenceBase | None = None) -> None:
        self._store = store or FilePersistence(nolock=True)

    def params(self, path: str) -> tuple[str, ...] | None:
        """The parameters that a file was made with, see `records.recorded_params`."""
        found = self._store._read_record(path)
        return None if found is None or found.params is None else tuple(found.params)

    def is_known(self, path: str) -> bool:
        """Whether Snakemake has a record of a file."""
        return self._store._read_record(path) is not None

    def agrees(self, path: str, record: Record) -> bool:
        """Whether Snakemake's record of a file says the same as `record`."""
        found = self._store._read_record(path)
        return (
            found is not None
            and found.rule == record.rule
            and found.params == list(record.params)
            and found.input == sorted(path for path, _ in record.inputs)
        )

    def unfinished(self, paths: Iterable[str]) -> set[str]:
        """Those of some files whose jobs were started and have not ended."""
        return self._store._filter_incomplete_keys(paths)

    def take_over(self, path: str, record: Record) -> None:
        """Makes `record` what Snakemake knows of a file."""
        inputs = sorted(path for path, _ in record.inputs)
        self._write(path, rule=record.rule, params=list(record.params), input=inputs)

    def disown(self, path: str, why: str) -> None:
        """Makes Snakemake redo the job of a file: no rule has the parameters that it now records.

        Args:
            why: shown in the plan, as what was recorded before.
        """
        self._write(path, params=[why])

    def _write(self, path: str, **known: str | list[str]) -> None:
        record = MetadataRecord(
            **known, record_format_version=RECORD_FORMAT_VERSION, incomplete=False
        )
        self._store._clear_cache()
        self._store._write_record(path, record)
