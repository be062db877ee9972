"""Jobs that are killed at chosen and at random moments, and started again."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from support.workspace import Workspace

from . import jobs
from .jobs import Job
from .moments import SIGNALS, Kill, armed, environment
from .reference import Reference

# Rules whose jobs keep a state beside their output, and the name of that file.
RESUMING = {"optimize_block": r"\.mm\d\d\.resume", "tune_weights": r"\.tuned\.resume"}


def one_of_each(all_jobs: list[Job]) -> list[Job]:
    """A job of every rule; of those that learn, the ones that keep a state."""
    chosen: dict[str, Job] = {}
    for job in all_jobs:
        learns = "chained" in next(iter(job.outputs))
        if job.rule not in chosen or (job.rule in RESUMING and learns):
            chosen[job.rule] = job
    return list(chosen.values())


def some_outputs(job: Job) -> list[str]:
    """Its outputs; of more than three the first two and the last."""
    paths = list(job.outputs)
    return paths if len(paths) < 4 else [paths[0], paths[1], paths[-1]]


def pattern(path: str) -> str:
    """Matches the path alone."""
    return path.replace(".", r"\.") + "$"


def kills_of(job: Job, reference: Reference) -> Iterator[Kill]:
    """Kills at every moment of a job, with all signals in turn."""
    script, turn = f"{job.script}.py", sum(map(ord, str(job)))

    def next_signal() -> str:
        nonlocal turn
        turn += 1
        return SIGNALS[turn % len(SIGNALS)]

    for path in some_outputs(job):
        for moment in ("write", "rename", "renamed"):
            yield Kill(script, moment, pattern(path), signal=next_signal())
        size = reference.size(path)
        if size > 100_000:  # no log grows that large
            yield Kill(script, "limit", signal="SIGXFSZ", bytes=size // 2)
    yield Kill(script, "end", signal="SIGKILL")
    state = RESUMING.get(job.script)
    if state:
        for moment, nth in (
            ("write", 1), ("write", 3), ("rename", 2), ("rename", 4), ("renamed", 1),
            ("renamed", 3), ("renamed", 5), ("remove", 1),
        ):  # fmt: skip
            yield Kill(script, moment, state, nth, next_signal())


def kill_job(
    job: Job, kill: Kill, workspace: Workspace, reference: Reference, folder: Path
) -> list[str]:
    """Kills a job that makes its outputs anew, and starts it again; what is wrong then."""
    for path in job.outputs:
        (workspace.folder / path).unlink(missing_ok=True)
    with armed(kill, folder) as arm:
        done = jobs.run(job, workspace, {**arm.environment})
    happened = done.returncode == -signal.SIGXFSZ if kill.moment == "limit" else arm.happened
    if not happened:
        reference.restore(workspace)
        return [
            f"it never came to that moment; exit status {done.returncode}: {done.stderr[-800:]}"
        ]
    return after_a_kill(job, workspace, reference)


def kill_job_at(job: Job, share: float, workspace: Workspace, reference: Reference) -> list[str]:
    """The same at a share of the seconds that the job takes undisturbed."""
    started = time.monotonic()
    jobs.run(job, workspace, fast_clock())
    seconds = time.monotonic() - started
    for path in job.outputs:
        (workspace.folder / path).unlink(missing_ok=True)
    process = subprocess.Popen(
        jobs.command(job), cwd=workspace.folder, env=fast_clock(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        process.wait(share * seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    process.wait()
    return after_a_kill(job, workspace, reference)


def fast_clock() -> dict[str, str]:
    """Jobs save their states much more often."""
    return environment("", fast_clock=True)


def after_a_kill(job: Job, workspace: Workspace, reference: Reference) -> list[str]:
    """Checks what a killed job left, runs it again, and checks what came of it."""
    problems = [
        f"{path} is there and not whole"
        for path in job.outputs
        if (workspace.folder / path).exists() and not reference.is_same(workspace, path)
    ]
    again = jobs.run(job, workspace)
    if again.returncode:
        problems.append(f"the next run fails: {again.stderr[-800:]}")
    problems += reference.differences(workspace)
    reference.restore(workspace)
    return problems


def random_kills(all_jobs: list[Job], count: int, seed: int) -> list[tuple[Job, float]]:
    """Jobs, and shares of the seconds that they take."""
    chance = random.Random(seed)
    return [(chance.choice(all_jobs), chance.uniform(0.2, 1.05)) for _ in range(count)]


def spare(workspace: Workspace, folder: Path) -> Workspace:
    """A copy to try jobs in."""
    shutil.rmtree(folder, ignore_errors=True)
    return workspace.copy(folder)
