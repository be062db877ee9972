"""Every kind of file that the workflow writes and reads, damaged in every way, and who notices."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from support.workspace import Workspace

from . import jobs
from .jobs import Job
from .kills import RESUMING
from .moments import Kill, armed
from .reference import Reference

TRACEBACK = "Traceback (most recent call last)"
ADVICE = ("delete it and run the same command again",)


@dataclass(frozen=True)
class Use:
    """A file, and a job that reads it.

    Attributes:
        kind: script and output name of the job that makes it.
        path: below the working directory.
        others: of its kind with other content, one beside it and one elsewhere, if there are.
        foreign: a file of another kind.
        maker: the job that writes it.
        reader: a job that has it among its inputs.
    """

    kind: str
    path: str
    others: tuple[str, ...]
    foreign: str
    maker: Job
    reader: Job

    def __str__(self) -> str:
        return f"{self.kind} read by {self.reader.rule}"


# ------------------------------------------------------------------------------- who reads what


def _files_by_kind(all_jobs: Sequence[Job]) -> dict[str, dict[str, Job]]:
    """Kind -> its files and their makers. Rules that share a script make the same kinds."""
    found: dict[str, dict[str, Job]] = {}
    for job in all_jobs:
        for path, name in job.outputs.items():
            found.setdefault(f"{job.script}.{name} ({Path(path).suffix})", {})[path] = job
    return found


def sources(job: Job, all_jobs: Sequence[Job]) -> set[str]:
    """A job's inputs, all that they were made from, and so on."""
    makers = {path: one for one in all_jobs for path in one.outputs}
    found: set[str] = set()
    waiting = list(job.inputs)
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += makers[path].inputs if path in makers else ()
    return found


def uses(all_jobs: Sequence[Job], reference: Reference) -> list[Use]:
    """Every kind of file with each script that reads it; a report looks at all its sources."""
    read = {
        job.path: sources(job, all_jobs) if job.rule == "render_report" else set(job.inputs)
        for job in all_jobs
    }
    by_kind = _files_by_kind(all_jobs)
    found = []
    for kind, files in sorted(by_kind.items()):
        foreign = _of_another_kind(kind, by_kind)
        seen = set()
        for path, maker in files.items():
            for reader in all_jobs:
                if path not in read[reader.path] or reader.script in seen:
                    continue
                seen.add(reader.script)
                others = _others(path, files, reference)
                found.append(Use(kind, path, others, foreign, maker, reader))
    return found


def _of_another_kind(kind: str, by_kind: Mapping[str, Mapping[str, Job]]) -> str:
    """A file of another kind, if there is one with the same suffix."""
    others = [name for name in by_kind if name != kind]
    alike = [name for name in others if name.split()[-1] == kind.split()[-1]]
    return next(iter(by_kind[(alike or others)[-1]]))


def _others(path: str, files: Mapping[str, Job], reference: Reference) -> tuple[str, ...]:
    differing = [one for one in files if reference.digests[one] != reference.digests[path]]
    beside = [one for one in differing if Path(one).parent == Path(path).parent]
    elsewhere = [one for one in differing if Path(one).parent != Path(path).parent]
    return (*beside[:1], *elsewhere[:1])


def unread(all_jobs: Sequence[Job]) -> list[str]:
    """Kinds of files that no job reads: what people and other programs take from a run."""
    read = {path for job in all_jobs for path in job.inputs}
    by_kind = _files_by_kind(all_jobs)
    return sorted(kind for kind, files in by_kind.items() if not read & set(files))


# ------------------------------------------------------------------------------------- damages


def _flipped(data: bytes, place: int, bit: int) -> bytes:
    return data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :]


def _places(data: bytes) -> dict[str, tuple[int, int]]:
    """Parts of a file -> from and to where. Of safetensors the header is the JSON in front."""
    size = len(data)
    header = int.from_bytes(data[:8], "little")
    if 2 < header < size - 8 and data[8:9] == b"{":
        return {"header": (0, 8), "metadata": (8, 8 + header), "data": (8 + header, size)}
    return {
        "header": (0, min(16, size)),
        "metadata": (min(16, size - 1), max(17, size // 4)),
        "data": (size // 4, size),
    }


def damages(
    data: bytes, others: Mapping[str, bytes], foreign: bytes, chance: random.Random
) -> Iterator[tuple[str, bytes]]:
    """What can become of a file: in words, and its content then."""
    yield "half of it", data[: len(data) // 2]
    yield "its last byte is missing", data[:-1]
    yield "emptied", b""
    for part, (start, stop) in _places(data).items():
        for _ in range(3 if part == "data" else 1):
            place, bit = chance.randrange(start, min(stop, len(data))), chance.randrange(8)
            yield f"bit {bit} of byte {place} ({part})", _flipped(data, place, bit)
    yield "its last byte", _flipped(data, len(data) - 1, chance.randrange(7))
    for name, other in others.items():
        yield f"exchanged with {name}", other
    yield "a file of another kind", foreign
    yield "a text", b"not what was written here\n"


# --------------------------------------------------------------------------------------- trials


@dataclass(frozen=True)
class Trial:
    """What came of a damage.

    Attributes:
        what: the file, its reader and the damage.
        outcome: "told", "not read" (the reader's files are right without it) or "fault".
        problem: of a fault, what is wrong.
    """

    what: str
    outcome: str
    problem: str = ""


def judge(text: str, status: int, path: str, advice: Sequence[str] = ADVICE) -> str:
    """What is wrong with what a job or a command printed about a damaged file; empty if nothing."""
    if TRACEBACK in text:
        return f"a traceback: {text[-700:]}"
    if status < 0:
        return f"killed by signal {-status}: {text[-300:]}"
    if Path(path).name not in text:
        return f"the message does not name the file: {text[-500:]}"
    if not any(words in text for words in advice):
        return f"the message does not say what to do: {text[-500:]}"
    return ""


def replace_content(path: Path, data: bytes) -> None:
    """Other content, the same time: what happens to a file on a disk."""
    status = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def try_damage(
    use: Use, what: str, data: bytes, workspace: Workspace, reference: Reference
) -> Trial:
    """Runs the reader of a damaged file."""
    words = f"{use.path}, {what}, read by {use.reader.rule}"
    replace_content(workspace.folder / use.path, data)
    done = jobs.run(use.reader, workspace)
    outputs = [path for path in use.reader.outputs if path != use.path]
    if done.returncode == 0:
        wrong = [path for path in outputs if not reference.is_same(workspace, path)]
        trial = Trial(words, "not read")
        if wrong:
            trial = Trial(words, "fault", f"exit status 0, and other content in {', '.join(wrong)}")
    else:
        problem = judge(done.stdout + done.stderr, done.returncode, use.path)
        trial = Trial(words, "fault" if problem else "told", problem)
    reference.restore(workspace)
    return trial


def try_plan(
    path: str, what: str, data: bytes, targets: Sequence[str], workspace: Workspace,
    reference: Reference,
) -> Trial:  # fmt: skip
    """Plans with a damaged file in place; nothing may be redone by mistake, and nothing crash."""
    words = f"{path}, {what}, while planning"
    replace_content(workspace.folder / path, data)
    done = workspace.snakemake(*targets, "--dry-run", "--quiet", "host", ok=False)
    reference.restore(workspace)
    text = done.stdout + done.stderr
    if done.returncode == 0 and TRACEBACK not in text:
        return Trial(words, "not read")
    problem = judge(text, done.returncode, path)
    return Trial(words, "fault" if problem else "told", problem)


def try_benchmark(
    path: str, what: str, data: bytes, reader: Job, workspace: Workspace, reference: Reference
) -> Trial:
    """Snakemake's records of seconds carry no seal: a number is shown as it stands there."""
    words = f"{path}, {what}, read by {reader.rule}"
    replace_content(workspace.folder / path, data)
    done = jobs.run(reader, workspace)
    same = all(reference.is_same(workspace, output) for output in reader.outputs)
    reference.restore(workspace)
    if done.returncode == 0 and TRACEBACK not in done.stderr:
        return Trial(words, "not read" if same else "shown as it is")
    problem = judge(done.stdout + done.stderr, done.returncode, path)
    return Trial(words, "fault" if problem else "told", problem)


def remade(use: Use, workspace: Workspace, reference: Reference) -> list[str]:
    """Deletes a file and makes it again, as the message says; what differs then."""
    (workspace.folder / use.path).unlink()
    for job in (use.maker, use.reader):
        done = jobs.run(job, workspace)
        if done.returncode:
            reference.restore(workspace)
            return [f"{job} fails after {use.path} was deleted: {done.stderr[-500:]}"]
    problems = reference.differences(workspace)
    reference.restore(workspace)
    return problems


def ways(use: Use, reference: Reference, chance: random.Random) -> list[tuple[str, bytes]]:
    """All damages of a file."""
    folder = reference.workspace.folder
    others = {path: (folder / path).read_bytes() for path in use.others}
    data, foreign = ((folder / path).read_bytes() for path in (use.path, use.foreign))
    return list(damages(data, others, foreign, chance))


def through_snakemake(
    use: Use, data: bytes, workspace: Workspace, reference: Reference
) -> list[str]:
    """The whole way of a user: a command fails, its advice is followed, the command is repeated."""
    targets = [*list(use.reader.outputs), "--forcerun", use.reader.rule]
    replace_content(workspace.folder / use.path, data)
    done = workspace.snakemake(*targets, ok=False)
    if done.returncode == 0:
        return ["exit status 0"]
    problem = judge(done.stdout + done.stderr, done.returncode, use.path)
    if problem:
        return [problem]
    (workspace.folder / use.path).unlink()
    done = workspace.snakemake(*targets, ok=False)
    if done.returncode:
        return [f"the second run fails: {done.stderr[-1000:]}"]
    return reference.differences(workspace, timed=False)


# ---------------------------------------------------------------------------------------- states


def leave_a_state(job: Job, workspace: Workspace, folder: Path) -> Path | None:
    """Kills a learning job when it has saved its state for the third time."""
    for path in job.outputs:
        (workspace.folder / path).unlink(missing_ok=True)
    kill = Kill(f"{job.script}.py", "renamed", RESUMING[job.script], 3)
    with armed(kill, folder) as arm:
        jobs.run(job, workspace, arm.environment)
    first = workspace.folder / next(iter(job.outputs))
    states = list(first.parent.glob(".*.resume.safetensors"))
    return states[0] if states else None


def try_states(
    job: Job,
    workspace: Workspace,
    reference: Reference,
    folder: Path,
    chance: random.Random,
    places: slice = slice(None),
) -> Iterator[Trial]:
    """A damaged state is not used, and leaves nothing behind."""
    state = leave_a_state(job, workspace, folder)
    if state is None:
        yield Trial(f"the state of {job}", "fault", "no state was saved")
        return
    whole = state.read_bytes()
    foreign = (reference.workspace.folder / next(iter(job.outputs))).read_bytes()
    for what, data in [("whole", whole), *damages(whole, {}, foreign, chance)][places]:
        state.write_bytes(data)
        done = jobs.run(job, workspace)
        problems = [done.stderr[-500:]] if done.returncode or TRACEBACK in done.stderr else []
        problems += reference.differences(workspace)
        words = f"{state.relative_to(workspace.folder)}, {what}"
        yield Trial(words, "fault" if problems else "told", "; ".join(problems))
        reference.restore(workspace)
        for path in job.outputs:
            (workspace.folder / path).unlink(missing_ok=True)
    state.unlink(missing_ok=True)
    reference.restore(workspace)
