"""Whole runs of Snakemake that are killed and started again, as a user would do it."""

from __future__ import annotations

import base64
import os
import random
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from support.workspace import Workspace, fresh_signals

from .jobs import Job
from .kills import RESUMING, pattern, some_outputs
from .moments import SIGNALS, Kill, armed, environment, wait_for_orphans
from .reference import Reference
from .setting import everything

SECONDS = 1200
MOMENTS = ("write", "rename", "renamed", "end")


def finished_files(workspace: Workspace) -> dict[str, tuple[int, int]]:
    """Files that Snakemake has on record as finished -> inode and time."""
    folder = workspace.folder / ".snakemake"

    def recorded(kind: str) -> set[str]:
        names = [p for p in (folder / kind).rglob("*") if p.is_file()] if folder.exists() else []
        return {
            base64.b64decode("".join(path.relative_to(folder / kind).parts)).decode()
            for path in names
        }

    found = {}
    for path in recorded("metadata") - recorded("incomplete"):
        file = workspace.folder / path
        if file.is_file():
            status = file.stat()
            found[path] = (status.st_ino, status.st_mtime_ns)
    return found


def start(
    workspace: Workspace, targets: Sequence[str], environ: dict[str, str], output: Path
) -> subprocess.Popen[str]:
    """A run that leads a process group of its own; what it and its orphans print goes to a file."""
    with output.open("w") as file:
        return subprocess.Popen(
            workspace.command(*targets), stdout=file, stderr=subprocess.STDOUT, text=True,
            env=environ, start_new_session=True, preexec_fn=fresh_signals,
        )  # fmt: skip


def unlock(workspace: Workspace) -> None:
    """What a killed Snakemake asks for, where it does."""
    locks = workspace.folder / ".snakemake" / "locks"
    if locks.is_dir() and any(locks.iterdir()):
        workspace.snakemake("--unlock")


def in_order(all_jobs: Sequence[Job]) -> list[Job]:
    """Jobs behind those whose files they read."""
    makes = {path: job for job in all_jobs for path in job.outputs}
    ordered: dict[str, Job] = {}

    def visit(job: Job) -> None:
        if job.path in ordered:
            return
        for path in job.inputs:
            if path in makes:
                visit(makes[path])
        ordered[job.path] = job

    for job in all_jobs:
        visit(job)
    return list(ordered.values())


def kills_of_a_pass(
    all_jobs: Sequence[Job], seed: int, rounds: int = 1
) -> Iterator[tuple[Job, Kill]]:
    """Kills in each job, in their order; seeded."""
    chance = random.Random(seed)
    deck: list[tuple[str, str, str]] = []
    for job in [job for job in all_jobs for _ in range(rounds)]:
        if not deck:
            deck = [
                (moment, number, whom)
                for moment in MOMENTS
                for number in SIGNALS
                for whom in ("group", "snakemake", "job")
                if (moment, whom) != ("write", "snakemake")
                and (moment, number) != ("end", "SIGINT")
            ]
            chance.shuffle(deck)
        moment, number, whom = deck.pop()
        path = chance.choice(some_outputs(job))
        kill = Kill(f"{job.script}.py", moment, pattern(path), 1, number, whom)
        yield job, replace(kill, file="") if moment == "end" else kill
        if job.script in RESUMING and "chained" in path:
            state = Kill(f"{job.script}.py", "write", RESUMING[job.script], 2, "SIGKILL", "group")
            yield job, state
            yield job, replace(state, moment="renamed", nth=3, signal="SIGTERM")


def kill_run(
    workspace: Workspace, targets: Sequence[str], kill: Kill, reference: Reference, folder: Path
) -> list[str]:
    """Kills a run, and says what is wrong with what it left; orphans may go on."""
    before = finished_files(workspace)
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / "output"
    with armed(kill, folder) as arm:
        process = start(workspace, targets, arm.environment, output)
        process.wait(SECONDS)
        happened = arm.happened
        unlock(workspace)
    problems = [] if happened else [f"it never came to that moment: {output.read_text()[-1500:]}"]
    return problems + damage(workspace, before, reference)


def kill_run_after(
    workspace: Workspace,
    targets: Sequence[str],
    seconds: float,
    reference: Reference,
    folder: Path,
) -> list[str]:
    """Kills a run and its jobs after some seconds, and says what is wrong with what it left."""
    before = finished_files(workspace)
    folder.mkdir(parents=True)
    process = start(workspace, targets, environment("^$"), folder / "output")
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    unlock(workspace)
    return damage(workspace, before, reference)


def damage(
    workspace: Workspace, before: dict[str, tuple[int, int]], reference: Reference
) -> list[str]:
    """Finished files that are not whole, and files that were finished before and made again."""
    now = finished_files(workspace)
    problems = [
        f"{path} is on record as finished and not whole"
        for path in now
        if path in reference.digests
        and not reference.is_timed(path)
        and not reference.is_same(workspace, path)
    ]
    redone = [path for path, status in before.items() if now.get(path) != status]
    return problems + [f"{path} was finished and was made again" for path in redone]


def end(workspace: Workspace, targets: Sequence[str], reference: Reference) -> list[str]:
    """Runs to the end; what is wrong then."""
    before = finished_files(workspace)
    done = workspace.snakemake(*targets, ok=False)
    if done.returncode:
        return [f"the run after it fails: {done.stdout[-500:]}{done.stderr[-2000:]}"]
    return damage(workspace, before, reference)


def kill_pass(
    workspace: Workspace,
    all_jobs: Sequence[Job],
    targets: Sequence[str],
    reference: Reference,
    seed: int,
    folder: Path,
    rounds: int = 1,
    at_random: int = 0,
) -> Iterator[tuple[str, list[str]]]:
    """From an empty folder to the end of all targets, with kills in some jobs.

    What is wrong at the end is counted against the last kill, beside what was wrong after it.

    Args:
        all_jobs: in which something is killed, each behind those whose files it needs (`in_order`).
        rounds: kills in each job.
        at_random: kills at random moments, after all those at chosen ones.

    Yields:
        A kill in words, and what was wrong.
    """
    waits: list[Path] = []
    last: tuple[str, list[str]] | None = None
    for number, (job, kill) in enumerate(kills_of_a_pass(all_jobs, seed, rounds)):
        place = folder / f"{number:03d}"
        waits.append(place)
        if last is not None:
            yield last
        problems = kill_run(workspace, [next(iter(job.outputs))], kill, reference, place)
        last = str(kill), problems
    chance = random.Random(seed)
    for number in range(at_random):
        if last is not None:
            yield last
        seconds, place = chance.uniform(2, 12), folder / f"random-{number}"
        problems = kill_run_after(workspace, targets, seconds, reference, place)
        last = f"SIGKILL to group after {seconds:.1f} s", problems
    assert last is not None
    problems = last[1] + end(workspace, targets, reference)
    for place in waits:
        wait_for_orphans(place)
    whole = set(targets) >= set(everything(workspace.config))
    problems += reference.differences(workspace, timed=False, whole=whole)
    problems += [f"{rule} would be run again" for rule in workspace.plan(*targets)]
    yield last[0], problems


def outrun_an_orphan(
    job: Job, moment: str, workspace: Workspace, reference: Reference, folder: Path
) -> tuple[Kill, list[str]]:
    """Snakemake is killed alone, the same command is run to its end, and then its orphan goes on.

    The workspace is a finished one, in which the job's outputs are made again.
    """
    targets = list(job.outputs)
    for path in targets:
        (workspace.folder / path).unlink()
    path = targets[-1]
    kill = Kill(f"{job.script}.py", moment, pattern(path), 1, "SIGKILL", "snakemake", hold=True)
    folder.mkdir(parents=True, exist_ok=True)
    with armed(kill, folder) as arm:
        start(workspace, targets, arm.environment, folder / "output").wait(SECONDS)
        happened = arm.happened
        unlock(workspace)
        problems = end(workspace, targets, reference)
    wait_for_orphans(folder)
    if not happened:
        problems.append("it never came to that moment")
    problems += reference.differences(workspace, timed=False)
    problems += [f"{rule} would be run again" for rule in workspace.plan(*targets)]
    return kill, problems
