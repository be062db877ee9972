"""Files that are either complete or absent, also after a kill or a power cut.

A file is written under a temporary name in its own folder, synced, renamed, and then the folder
and those above it are synced. So what a job reported as finished is on the disk, and a kill at any
moment leaves the old file or none.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import UserError


def _sync(descriptor: int) -> None:
    """Brings a file or folder to the disk itself; macOS's fsync stops at the drive's cache."""
    if sys.platform == "darwin":
        with suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    os.fsync(descriptor)


def _sync_folders(folder: Path) -> None:
    """Syncs a folder and those above it, any of which may be new."""
    for one in [folder, *folder.parents]:
        # A folder that may not be read, or a file system that syncs no folders.
        with suppress(OSError):
            descriptor = os.open(one, os.O_RDONLY)
            try:
                _sync(descriptor)
            finally:
                os.close(descriptor)


def _is_locked(descriptor: int) -> bool:
    """Takes the lock that a writer holds on its temporary file; True if another process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Removes what killed writes of `path` left beside it, but no file that is being written."""
    target = Path(path)
    name = re.compile(
        rf"\.{re.escape(target.stem)}\.\d+\.partial{re.escape(target.suffix)}", re.DOTALL
    )
    if not target.parent.is_dir():
        return
    for found in os.listdir(target.parent):
        if not name.fullmatch(found):
            continue
        with suppress(FileNotFoundError):
            descriptor = os.open(target.parent / found, os.O_RDWR)
            try:
                if not _is_locked(descriptor):
                    os.unlink(target.parent / found)
            finally:
                os.close(descriptor)


def remove(path: str | os.PathLike[str]) -> None:
    """Removes a file, if it is there, and what killed writes of it left."""
    Path(path).unlink(missing_ok=True)
    remove_leftovers(path)


def _new_file(path: Path) -> int:
    """Descriptor of a new, locked file."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Between the two calls another process may have taken the file for a leftover.
        with suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        os.close(descriptor)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is synced and renamed, else removed.

    The temporary name keeps the suffix (some libraries choose a file's format by it) and starts
    with a dot. Write into the file that is there; do not put another in its place.

    Raises:
        UserError: the disk is full or its quota is used up.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target)
        temporary = target.with_name(f".{target.stem}.{os.getpid()}.partial{target.suffix}")
        descriptor = _new_file(temporary)
        try:
            yield temporary
            _sync(descriptor)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
            os.close(descriptor)
        _sync_folders(target.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                f"The disk is full: {target} could not be written. Nothing finished was lost: "
                "free some space and run the same command again."
            ) from error
        raise


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file that carries no seal."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text in UTF-8 that carries no seal."""
    write_bytes(path, text.encode("utf-8"))
