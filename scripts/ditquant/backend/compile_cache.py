"""A folder of the user's own for the kernels that MLX compiles on Linux, or none.

On the Linux CPU `mx.compile` calls g++ and loads what that makes; on CUDA MLX keeps its compiled
modules. Both lie in a folder `mlx` of the temporary folder, which all users of a machine share: the
second user may not write there, and whoever comes first could put libraries there for others.

MLX 0.32.4 asks for the temporary folder at each compilation and renames what it compiled, so any
number of processes may share a folder, and kernels stay for the next job.
"""

from __future__ import annotations

import os
import platform
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass
class CompileCache:
    """Where MLX keeps what it compiles: a folder, or why there is none and nothing is compiled."""

    folder: Path | None = None
    problem: str | None = None


COMPILE_CACHE = CompileCache()


def _candidates() -> list[Path]:
    """The user's cache, and a folder of the user's own among temporary files."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    # Python looks for its temporary folder once: that stays what it is before TMPDIR changes.
    temporary = Path(tempfile.gettempdir()).resolve() / f"ditquant-{os.geteuid()}"
    own = [Path(cache).resolve() / "ditquant"] if os.path.isabs(cache) else []
    return [*own, temporary]


def _others_may_write(status: os.stat_result) -> bool:
    return bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _fault(folder: Path) -> str | None:
    """Why a folder is none that only this user can write to; it is made if it is not there.

    Who can write to a folder above it could put another in its place, unless the sticky bit keeps
    them from that, as it does in /tmp.
    """
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        own = folder.lstat()
        above = [parent.stat() for parent in folder.parents]
    except OSError as error:
        return f"{error.strerror}"
    if not stat.S_ISDIR(own.st_mode):
        return "it is a link and no folder"
    if own.st_uid != os.geteuid():
        return "it belongs to another user"
    if _others_may_write(own):
        return "others may write to it"
    if any(_others_may_write(one) and not one.st_mode & stat.S_ISVTX for one in above):
        return "others may replace it"
    # MLX writes the path between double quotes into a command.
    return "its path holds quotes, $ or a backslash" if set(str(folder)) & set('"$`\\') else None


def use_own_folder(compiles: Callable[[], None], give_up: Callable[[], None]) -> None:
    """Chooses the first folder in which compiling works, and records it in `COMPILE_CACHE`.

    Called once, before anything is compiled. MLX is told by `TMPDIR`; Python's temporary files stay
    where they were.

    Args:
        compiles: compiles something on the device and runs it; raises RuntimeError if that fails.
        give_up: makes MLX compile nothing; called where there is no folder.
    """
    if platform.system() != "Linux":
        return  # Metal keeps its own cache for each user.
    before = os.environ.get("TMPDIR")
    faults = []
    for folder in _candidates():
        fault = _fault(folder)
        if fault is None:
            os.environ["TMPDIR"] = str(folder)
            try:
                compiles()
            except RuntimeError as error:
                fault = _reason(str(error))
            else:
                COMPILE_CACHE.folder = folder
                return
        faults.append(f"{folder}: {fault}")
    if before is None:
        os.environ.pop("TMPDIR", None)
    else:
        os.environ["TMPDIR"] = before
    COMPILE_CACHE.problem = "; ".join(faults)
    give_up()


def _reason(text: str) -> str:
    """What MLX says of a compilation that failed, in few words."""
    for sign, reason in (
        ("failed to map segment", "nothing may be executed there (noexec)"),
        ("No space left", "the disk is full"),
        ("Disk quota exceeded", "the disk quota is used up"),
        ("Read-only", "it is read-only"),
    ):
        if sign in text:
            return reason
    return text.strip().splitlines()[-1][-200:]


def compile_advice(error: BaseException) -> str | None:
    """What to do about a kernel that could not be compiled or loaded while a job ran."""
    text = str(error)
    if "[Compile::eval_cpu]" not in text and "Could not load C++ shared library" not in text:
        return None
    return (
        f"MLX could not compile a kernel, or load one, in {COMPILE_CACHE.folder}. Free some space, "
        "or delete that folder (it is a cache), and run the same command again. XDG_CACHE_HOME "
        "names another place, and MLX_DISABLE_COMPILE=1 goes on without compiling. "
        f"({_reason(text)})"
    )
