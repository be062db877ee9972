"""The parts of `make faults`: each goes through its cases and counts them."""

from __future__ import annotations

import queue
import random
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from support.workspace import Workspace

from . import corruption, kills, power, runs
from .jobs import Job
from .record import Count
from .reference import Reference
from .setting import everything, fresh

Problems = tuple[str, list[str]]


class Bench:
    """A finished run with its jobs, and copies of it to try things in, one for each worker."""

    def __init__(self, reference: Reference, all_jobs: Sequence[Job], folder: Path, workers: int):
        self.reference, self.jobs, self.folder = reference, list(all_jobs), folder
        self.workers = workers
        self._spares: queue.Queue[Workspace] = queue.Queue()
        for number in range(workers):
            self._spares.put(kills.spare(reference.workspace, folder / f"spare-{number}"))
        self._number = 0

    def place(self) -> Path:
        """A new folder for locks and messages."""
        self._number += 1
        return self.folder / "places" / f"{self._number:05d}"

    def each(self, cases: Iterable[Any], attempt: Callable[[Any, Workspace], Any]) -> Iterable[Any]:
        """`attempt` of each case in a spare copy, several at once; results in the cases' order."""

        def in_a_spare(case: Any) -> Any:
            workspace = self._spares.get()
            try:
                return attempt(case, workspace)
            finally:
                self._spares.put(workspace)

        with ThreadPoolExecutor(self.workers) as pool:
            yield from pool.map(in_a_spare, cases)


def steady(bench: Bench) -> Count:
    """Every sort of job run once more gives the same bytes; else nothing below means anything."""
    count = Count("jobs that were only run again")

    def attempt(job: Job, workspace: Workspace) -> Problems:
        return str(job), kills.after_a_kill(job, workspace, bench.reference)

    for case, problems in bench.each(kills.one_of_each(bench.jobs), attempt):
        count.add(case, problems)
    return count


def killed_jobs(bench: Bench, every: int = 1) -> Count:
    """Jobs by themselves, killed at each of their moments; of `every` so many kills one."""
    count = Count("kills of single jobs at chosen moments")
    cases = [
        (job, kill)
        for job in kills.one_of_each(bench.jobs)
        for kill in kills.kills_of(job, bench.reference)
    ]

    def attempt(case: tuple[Job, kills.Kill], workspace: Workspace) -> Problems:
        return str(case[1]), kills.kill_job(*case, workspace, bench.reference, bench.place())

    for case, problems in bench.each(cases[::every], attempt):
        count.add(case, problems)
    return count


def killed_at_random(bench: Bench, number: int, seed: int) -> Count:
    """Jobs by themselves, killed at random moments."""
    count = Count("kills of single jobs at random moments")

    def attempt(case: tuple[Job, float], workspace: Workspace) -> Problems:
        job, share = case
        words = f"SIGKILL at {share:.2f} of the time of {job}"
        return words, kills.kill_job_at(job, share, workspace, bench.reference)

    cases = kills.random_kills(kills.one_of_each(bench.jobs), number, seed)
    for case, problems in bench.each(cases, attempt):
        count.add(case, problems)
    return count


def killed_runs(bench: Bench, all_jobs: Sequence[Job], targets: Sequence[str], seed: int) -> Count:
    """A run from an empty folder that is killed in a job of every rule on its way."""
    count = Count(f"kills of runs of Snakemake on their way (seed {seed})")
    workspace = fresh(bench.reference.workspace, bench.folder / f"pass-{seed}")
    places = bench.folder / "places" / f"pass-{seed}"
    for kill, problems in runs.kill_pass(
        workspace, all_jobs, targets, bench.reference, seed, places
    ):
        count.add(str(kill), problems)
    return count


def outrun_orphans(bench: Bench, all_jobs: Sequence[Job]) -> Count:
    """Jobs that are still at work when the run after theirs has ended."""
    count = Count("kills of Snakemake alone, whose orphan ends after the next run")
    cases = [(job, ("rename", "renamed")[index % 2]) for index, job in enumerate(all_jobs)]

    def attempt(case: tuple[Job, str], workspace: Workspace) -> Problems:
        kill, problems = runs.outrun_an_orphan(*case, workspace, bench.reference, bench.place())
        bench.reference.restore(workspace)
        return str(kill), problems

    for case, problems in bench.each(cases, attempt):
        count.add(case, problems)
    return count


def _add_trials(count: Count, trials: Iterable[corruption.Trial]) -> None:
    for trial in trials:
        count.notes[trial.outcome] += 1
        count.add(trial.what, [trial.problem] if trial.outcome == "fault" else [])


def damaged_files(bench: Bench, seed: int, every: int = 1) -> Count:
    """Every kind of file damaged in every way, each read by every script that reads its kind."""
    count = Count("damaged files, read by a job")
    cases = []
    for number, use in enumerate(corruption.uses(bench.jobs, bench.reference)):
        data, other, foreign = corruption.contents(use, bench.reference)
        ways = list(corruption.damages(data, other, foreign, random.Random(f"{seed} {use}")))
        cases += [(use, *way) for way in ways[number % every :: every]]

    def attempt(case: Any, workspace: Workspace) -> corruption.Trial:
        return corruption.try_damage(*case, workspace, bench.reference)

    _add_trials(count, bench.each(cases, attempt))
    return count


def remade_files(bench: Bench) -> Count:
    """Every kind of file deleted, made again, and read."""
    count = Count("files deleted as the message says, and made again")
    cases = {use.kind: use for use in corruption.uses(bench.jobs, bench.reference)}

    def attempt(use: corruption.Use, workspace: Workspace) -> Problems:
        return str(use), corruption.remade(use, workspace, bench.reference)

    for case, problems in bench.each(cases.values(), attempt):
        count.add(case, problems)
    return count


def damaged_states(bench: Bench, seed: int) -> Count:
    """States of learning jobs, damaged before the job goes on."""
    count = Count("damaged states of learning jobs")
    learning = [job for job in kills.one_of_each(bench.jobs) if job.script in kills.RESUMING]

    def attempt(job: Job, workspace: Workspace) -> list[corruption.Trial]:
        chance, place = random.Random(seed), bench.place()
        return list(corruption.try_states(job, workspace, bench.reference, place, chance))

    for trials in bench.each(learning, attempt):
        _add_trials(count, trials)
    return count


def damaged_in_runs(bench: Bench, seed: int, number: int) -> Count:
    """Some damaged files through Snakemake: told, deleted, and the same command again."""
    count = Count("damaged files in runs of Snakemake, deleted and made again")
    chance = random.Random(seed)
    everywhere = corruption.uses(bench.jobs, bench.reference)
    cases = chance.sample(everywhere, min(number, len(everywhere)))

    def attempt(use: corruption.Use, workspace: Workspace) -> Problems:
        data = bytearray(corruption.contents(use, bench.reference)[0])
        data[len(data) * 2 // 3] ^= 1
        problems = corruption.through_snakemake(use, bytes(data), workspace, bench.reference)
        bench.reference.restore(workspace)
        return str(use), problems

    for case, problems in bench.each(cases, attempt):
        count.add(case, problems)
    return count


def power_cuts(bench: Bench, targets: Sequence[str] | None = None, resume_each: int = 0) -> Count:
    """The power cut after every job of a run, and once more without syncs."""
    count = Count("power cuts")
    reason = power.missing() or power.unmountable(bench.folder / "power")
    if reason:
        count.skipped = reason
        return count
    whole = list(targets or everything(bench.reference.workspace.config))
    for name, options in power.OPTIONS.items():
        losses = power.cut_power(
            bench.reference, whole, bench.folder / "power", options, resume_each=resume_each
        )
        count.add_cuts(
            name, losses.cuts, losses.files, losses.lost, losses.resumed, losses.problems
        )
    unsynced = power.cut_power(bench.reference, whole, bench.folder / "power", synced=False)
    count.notes["files looked for without syncs"] += unsynced.files
    count.notes["files lost without syncs"] += len(unsynced.lost)
    if not unsynced.lost:
        count.add("without syncs", ["nothing was lost: the test sees no losses"])
    return count
