"""A run on a file system that loses its power.

An ext4 image is mounted from a file. What the mounted file system still holds in memory is not in
that file: a copy of it, made while the run is stopped, is what a power cut would leave on a disk.
The copy is mounted elsewhere, which replays its journal, and compared with the run as it stood.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from support.workspace import Workspace, fresh_signals

from .moments import environment
from .reference import Reference, digest
from .runs import finished_files
from .setting import fresh

MEGABYTES = 192
# Ways to mount: one brings renames to the disk soon and contents late, the other both late.
OPTIONS = {
    "names before contents": "data=writeback,noauto_da_alloc,commit=1",
    "everything late": "commit=300",
}


def missing() -> str | None:
    """Why power cannot be cut here; None where it can."""
    if sys.platform != "linux":
        return "only Linux has loop devices and ext4"
    if os.geteuid() != 0:
        return "mounting needs root"
    for tool in ("mkfs.ext4", "mount", "umount", "losetup"):
        if shutil.which(tool) is None:
            return f"there is no {tool}"
    return None


def unmountable(folder: Path) -> str | None:
    """Why an image cannot be mounted here (a container may forbid it); None where it can."""
    try:
        with mounted(new_image(folder / "trial.img", 16), folder / "trial", "defaults"):
            return None
    except subprocess.CalledProcessError as error:
        return f"mounting fails: {error.stderr.strip()}"
    finally:
        (folder / "trial.img").unlink(missing_ok=True)


def _call(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def new_image(path: Path, megabytes: int = MEGABYTES) -> Path:
    """A file with an empty ext4 file system, which the kernel has nothing left to add to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(megabytes * 2**20)
    _call("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(path))
    return path


@contextmanager
def mounted(image: Path, folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    _call("mount", "-o", f"loop,{options}", str(image), str(folder))
    try:
        yield folder
    finally:
        _call("umount", str(folder))


@dataclass
class Losses:
    """What power cuts took.

    Attributes:
        cuts: how many there were.
        files: finished files that were looked for, over all cuts.
        lost: those that were missing, empty or other, in words.
        resumed: runs that went on from what was left, and what was wrong with their ends.
    """

    cuts: int = 0
    files: int = 0
    lost: list[str] = field(default_factory=list)
    resumed: int = 0
    problems: list[str] = field(default_factory=list)


def look(image: Path, workspace: Workspace, place: Path, losses: Losses) -> None:
    """Mounts the copy of an image, and compares what the run has finished."""
    losses.cuts += 1
    with mounted(image, place, "defaults") as folder:
        for path in finished_files(workspace):
            losses.files += 1
            left = folder / workspace.folder.name / path
            if not left.is_file():
                losses.lost.append(f"{path} is gone")
            elif digest(left) != digest(workspace.folder / path):
                size, whole = left.stat().st_size, (workspace.folder / path).stat().st_size
                losses.lost.append(f"{path} has other content ({size} of {whole} bytes)")


def cut_power(
    reference: Reference,
    targets: Sequence[str],
    folder: Path,
    options: str = OPTIONS["everything late"],
    synced: bool = True,
    resume_each: int = 0,
) -> Losses:
    """Runs targets on a file system, whose power is cut whenever a job is reported as finished.

    Args:
        reference: an undisturbed run of the same configuration.
        options: how the file system is mounted.
        synced: False switches all syncs of jobs off, to see that losses are seen.
        resume_each: after each so many cuts the run is also gone on with from what is left.
    """
    image, copy = new_image(folder / "disk.img"), folder / "copy.img"
    losses = Losses()
    with mounted(image, folder / "disk", options) as disk:
        workspace = fresh(reference.workspace, disk / "run")
        _call("sync", "-f", str(disk))  # the file system itself is older than the run
        process = subprocess.Popen(
            workspace.command(*targets), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", start_new_session=True, preexec_fn=fresh_signals,
            env=environment("" if not synced else "^$", unsynced=not synced),
        )  # fmt: skip
        assert process.stdout is not None
        last = ""
        for line in process.stdout:
            last += line
            if not line.startswith("Finished jobid"):
                continue
            os.killpg(process.pid, signal.SIGSTOP)
            try:
                _call("cp", "--sparse=always", str(image), str(copy))
                look(copy, workspace, folder / "replayed", losses)
            finally:
                os.killpg(process.pid, signal.SIGCONT)
            if resume_each and losses.cuts % resume_each == 0:
                losses.problems += go_on(copy, targets, reference, folder / "resumed")
                losses.resumed += 1
        if process.wait() != 0:
            losses.problems.append(f"the run itself failed: {last[-2000:]}")
    for path in (image, copy):
        path.unlink(missing_ok=True)
    return losses


def go_on(image: Path, targets: Sequence[str], reference: Reference, place: Path) -> list[str]:
    """The same command on what a power cut left; what is wrong with what it makes."""
    with mounted(image, place, "defaults") as folder:
        original = reference.workspace
        workspace = Workspace(folder / "run", original.config, original.root)
        workspace.snakemake("--unlock", ok=False)
        done = workspace.snakemake(*targets, ok=False)
        if done.returncode:
            return [f"the run after a power cut fails: {done.stderr[-2000:]}"]
        made = workspace.digests()
        expected = original.digests()
        return [
            f"{name} differs after a power cut" for name in made if made[name] != expected.get(name)
        ]
