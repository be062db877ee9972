"""What an undisturbed run made: the measure of all others."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from support.workspace import Workspace, is_timed


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _files(workspace: Workspace) -> list[str]:
    """Every file of the results but logs and records, which hold inodes; paths as jobs see them."""
    return sorted(
        str(path.relative_to(workspace.folder))
        for path in workspace.results.rglob("*")
        if path.is_file()
        and path.relative_to(workspace.results).parts[0] not in ("logs", ".records")
    )


@dataclass(frozen=True)
class Reference:
    """A finished run.

    Attributes:
        workspace: where it lies; it is never changed.
        digests: path below the working directory -> digest; without logs.
        timings: those of the paths whose content are seconds.
    """

    workspace: Workspace
    digests: dict[str, str]
    timings: frozenset[str]

    def size(self, path: str) -> int:
        return (self.workspace.folder / path).stat().st_size

    def is_same(self, workspace: Workspace, path: str) -> bool:
        """Whether a file is byte for byte what it should be; a timing needs only be there."""
        file = workspace.folder / path
        if path in self.timings:
            return file.is_file() and file.stat().st_size > 0
        return file.is_file() and digest(file) == self.digests[path]

    def is_timed(self, path: str) -> bool:
        """Whether another whole run may make another file."""
        return is_timed((self.workspace.folder / path).relative_to(self.workspace.results))

    def differences(
        self, workspace: Workspace, timed: bool = True, whole: bool = True
    ) -> list[str]:
        """Missing, differing and leftover files.

        Args:
            timed: compare also what is made of timings, which another whole run measures anew.
            whole: everything must be there; False where some targets alone were asked for.
        """
        found = set(_files(workspace))
        problems = [f"{path} is left over" for path in sorted(found - set(self.digests))]
        for path in self.digests:
            if path not in found and not whole:
                continue
            if not timed and self.is_timed(path):
                if path not in found:
                    problems.append(f"{path} is missing")
            elif not self.is_same(workspace, path):
                problems.append(f"{path} {'differs' if path in found else 'is missing'}")
        return problems

    def restore(self, workspace: Workspace) -> None:
        """Puts every file back that is not as it was, with its time."""
        for path in set(_files(workspace)) - set(self.digests):
            (workspace.folder / path).unlink()
        for path, wanted in self.digests.items():
            file, source = workspace.folder / path, self.workspace.folder / path
            if (
                not file.is_file()
                or file.stat().st_mtime_ns != source.stat().st_mtime_ns
                or digest(file) != wanted
            ):
                file.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, file)


def reference_of(workspace: Workspace) -> Reference:
    """The files of a finished run, as they are now."""
    files = _files(workspace)
    digests = {path: digest(workspace.folder / path) for path in files}
    start = f"results/{workspace.config['run']}/benchmarks/"
    return Reference(workspace, digests, frozenset(p for p in files if p.startswith(start)))
