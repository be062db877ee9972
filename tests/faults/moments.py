"""What is to happen to a job's process, and where; `hook/sitecustomize.py` does it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HOOK = Path(__file__).parent / "hook"
SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT")


@dataclass(frozen=True)
class Kill:
    """A kill at a moment of a job's work.

    Attributes:
        script: pattern of the name of the job's script.
        moment: "write", "rename", "renamed", "remove", "start", "end" or "limit" (see the hook).
        file: pattern of the path that comes to the moment.
        nth: at which time it does.
        signal: name of the signal.
        whom: "job", "group" (Snakemake and its jobs, what Ctrl-C does) or "snakemake" (the jobs go
            on as orphans).
        hold: an orphan waits at the moment until the next run has ended.
        bytes: where a write ends, of the moment "limit".
    """

    script: str
    moment: str
    file: str = ""
    nth: int = 1
    signal: str = "SIGKILL"
    whom: str = "job"
    hold: bool = False
    bytes: int = 0

    def __str__(self) -> str:
        what = f" of {self.file}" if self.file else ""
        return f"{self.signal} to {self.whom} at {self.moment}{what} ({self.nth}) in {self.script}"


def environment(script: str = "", **instructions: Any) -> dict[str, str]:
    """The environment of a process whose jobs with such a script follow the instructions."""
    paths = [str(HOOK), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "FAULTS": json.dumps({"script": script, **instructions}),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


@dataclass
class Armed:
    """A kill that is about to happen: the environment for it, and what became of it."""

    environment: dict[str, str]
    token: Path

    @property
    def happened(self) -> bool:
        return not self.token.exists()


def wait_for_orphans(folder: Path) -> None:
    """Returns when no job is left of a run that was started under the kill of this folder."""
    with (folder / "alive").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)


@contextmanager
def armed(kill: Kill, folder: Path) -> Iterator[Armed]:
    """Prepares a kill with its locks in `folder`; an orphan that is held goes on at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    token, alive, hold = (folder / name for name in ("token", "alive", "hold"))
    for path in (token, alive, hold):
        path.touch()
    fault = {
        **asdict(kill),
        "token": str(token),
        "hold": str(hold) if kill.hold else None,
    }
    with hold.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        environ = environment(kill.script, kill=fault, alive=str(alive), fast_clock=True)
        yield Armed(environ, token)
