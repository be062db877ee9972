"""The parts of `make faults`: each goes through its cases and counts them."""

from __future__ import annotations

import queue
import random
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from support.workspace import Workspace

from . import corruption, elsewhere, jobs, kills, power, runs, spoiled
from .jobs import Job
from .moments import Kill
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

    def each(
        self,
        cases: Iterable[Any],
        attempt: Callable[[Any, Workspace], Any],
        renewed: bool = False,
    ) -> Iterable[Any]:
        """`attempt` of each case in a spare copy, several at once; results in the cases' order.

        Args:
            renewed: copy the finished run anew after each, with Snakemake's records.
        """

        def in_a_spare(case: Any) -> Any:
            workspace = self._spares.get()
            try:
                return attempt(case, workspace)
            finally:
                if renewed:
                    kills.spare(self.reference.workspace, workspace.folder)
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


def unknown_reads(bench: Bench) -> Count:
    """Files that jobs open and that no part damages: there must be none.

    A job looks at its inputs, at what they were made from, and so on (`provenance.Lineage`).
    """
    count = Count("jobs whose files are all known")
    model = Path(bench.reference.workspace.config["model"]["checkpoint"])
    known = {
        str(source.path) for source in elsewhere.sources(bench.reference.workspace, bench.jobs)
    }

    def attempt(job: Job, workspace: Workspace) -> Problems:
        read = jobs.reads(job, workspace, [workspace.results, model], bench.place())
        bench.reference.restore(workspace)
        mine = (*corruption.sources(job, bench.jobs), *job.outputs)
        allowed = {str(workspace.folder / path) for path in mine} | known
        return str(job), [
            f"{path} is read and not known"
            for path in sorted(read - allowed)
            if "/logs/" not in path and not (job.rule == "render_report" and path.endswith(".tsv"))
        ]

    for case, problems in bench.each(kills.one_of_each(bench.jobs), attempt):
        count.add(case, problems)
    return count


def all_kills(bench: Bench) -> list[tuple[Job, Kill]]:
    """A job of every rule with each kill at a moment of its own."""
    return [
        (job, kill)
        for job in kills.one_of_each(bench.jobs)
        for kill in kills.kills_of(job, bench.reference)
    ]


def killed_jobs(bench: Bench, cases: Sequence[tuple[Job, Kill]]) -> Count:
    """Jobs by themselves, killed at chosen moments."""
    count = Count("kills of single jobs at chosen moments", "kills")

    def attempt(case: tuple[Job, Kill], workspace: Workspace) -> Problems:
        return str(case[1]), kills.kill_job(*case, workspace, bench.reference, bench.place())

    for case, problems in bench.each(cases, attempt):
        count.add(case, problems)
    return count


def killed_at_random(bench: Bench, number: int, seed: int) -> Count:
    """Jobs by themselves, killed at random moments."""
    count = Count("kills of single jobs at random moments", "kills")

    def attempt(case: tuple[Job, float], workspace: Workspace) -> Problems:
        job, share = case
        words = f"SIGKILL at {share:.2f} of the time of {job}"
        return words, kills.kill_job_at(job, share, workspace, bench.reference)

    cases = kills.random_kills(kills.one_of_each(bench.jobs), number, seed)
    for case, problems in bench.each(cases, attempt):
        count.add(case, problems)
    return count


def killed_runs(
    bench: Bench,
    all_jobs: Sequence[Job],
    targets: Sequence[str],
    seed: int,
    rounds: int = 1,
    at_random: int = 0,
) -> Count:
    """A run from an empty folder that is killed in a job of every rule on its way."""
    count = Count(f"kills of runs of Snakemake on their way (seed {seed})", "kills")
    workspace = fresh(bench.reference.workspace, bench.folder / f"pass-{seed}")
    places = bench.folder / "places" / f"pass-{seed}"
    chosen = {job.path for job in all_jobs}
    all_jobs = [job for job in runs.in_order(bench.jobs) if job.path in chosen]
    for kill, problems in runs.kill_pass(
        workspace, all_jobs, targets, bench.reference, seed, places, rounds, at_random
    ):
        count.add(kill, problems)
    return count


def outrun_orphans(bench: Bench, all_jobs: Sequence[Job]) -> Count:
    """Jobs that are still at work when the run after theirs has ended."""
    count = Count("kills of Snakemake alone, whose orphan ends after the next run", "kills")
    cases = [(job, ("rename", "renamed")[index % 2]) for index, job in enumerate(all_jobs)]

    def attempt(case: tuple[Job, str], workspace: Workspace) -> Problems:
        kill, problems = runs.outrun_an_orphan(*case, workspace, bench.reference, bench.place())
        return str(kill), problems

    for case, problems in bench.each(cases, attempt, renewed=True):
        count.add(case, problems)
    return count


def _add_trials(count: Count, trials: Iterable[corruption.Trial]) -> None:
    for trial in trials:
        count.notes[trial.outcome] += 1
        count.add(trial.what, [trial.problem] if trial.outcome == "fault" else [])


def damaged_files(bench: Bench, seed: int, one_of_each: bool = False) -> Count:
    """Every kind of file damaged in every way, each read by every script that reads its kind.

    The first reader of a kind meets every damage, each further one three of them.

    Args:
        one_of_each: of each kind of file one reader and one damage.
    """
    count = Count("damaged files, read by a job", "corruption")
    cases, chance = [], random.Random(seed)
    uses = corruption.uses(bench.jobs, bench.reference)
    if one_of_each:
        chance.shuffle(uses)
        uses = list({use.kind: use for use in uses}.values())
    seen: set[str] = set()
    for number, use in enumerate(uses):
        own = random.Random(f"{seed} {use}")
        ways = corruption.ways(use, bench.reference, own)
        if one_of_each:
            ways = ways[number % len(ways) :][:1]
        elif use.kind in seen:
            ways = own.sample(ways, 3)
        seen.add(use.kind)
        cases += [(use, *way) for way in ways]

    def attempt(case: Any, workspace: Workspace) -> corruption.Trial:
        return corruption.try_damage(*case, workspace, bench.reference)

    _add_trials(count, bench.each(cases, attempt))
    return count


def damaged_plans(bench: Bench, seed: int) -> Count:
    """Every kind of file damaged while a run is planned."""
    count = Count("damaged files while planning", "corruption")
    cases, chance = [], random.Random(seed)
    targets = everything(bench.reference.workspace.config)
    for use in {use.kind: use for use in corruption.uses(bench.jobs, bench.reference)}.values():
        ways = corruption.ways(use, bench.reference, chance)
        cases += [(use.path, *way) for way in chance.sample(ways, 1)]

    def attempt(case: Any, workspace: Workspace) -> corruption.Trial:
        return corruption.try_plan(*case, targets, workspace, bench.reference)

    _add_trials(count, bench.each(cases, attempt))
    return count


def damaged_benchmarks(bench: Bench, seed: int, every: int = 1) -> Count:
    """Snakemake's own records of seconds, which the report reads."""
    count = Count("damaged records of Snakemake, read by the report", "corruption")
    (report,) = (job for job in bench.jobs if job.rule == "render_report")
    (path, *_) = (path for path in bench.reference.digests if path.endswith(".tsv"))
    data = (bench.reference.workspace.folder / path).read_bytes()
    ways = list(corruption.damages(data, {}, b"{}", random.Random(seed)))

    def attempt(way: tuple[str, bytes], workspace: Workspace) -> corruption.Trial:
        return corruption.try_benchmark(path, *way, report, workspace, bench.reference)

    _add_trials(count, bench.each(ways[::every], attempt))
    return count


def damaged_sources(bench: Bench, seed: int, places: slice = slice(None)) -> Count:
    """The model's own files and the prompts, one after the other: all copies read the same."""
    count = Count("damaged files of the model and of prompts", "corruption")
    workspace = kills.spare(bench.reference.workspace, bench.folder / "sources")
    targets = everything(workspace.config)
    for source in elsewhere.sources(workspace, bench.jobs):
        chance = random.Random(f"{seed} {source.path.name}")
        _add_trials(
            count,
            elsewhere.try_sources(source, targets, workspace, bench.reference, chance, places),
        )
    return count


def remade_files(bench: Bench) -> Count:
    """Every kind of file deleted, made again, and read."""
    count = Count("files deleted as the message says, and made again", "corruption")
    cases = {use.kind: use for use in corruption.uses(bench.jobs, bench.reference)}

    def attempt(use: corruption.Use, workspace: Workspace) -> Problems:
        return str(use), corruption.remade(use, workspace, bench.reference)

    for case, problems in bench.each(cases.values(), attempt):
        count.add(case, problems)
    return count


def damaged_states(bench: Bench, seed: int, places: slice = slice(None)) -> Count:
    """States of learning jobs, damaged before the job goes on."""
    count = Count("damaged states of learning jobs", "corruption")
    learning = [job for job in kills.one_of_each(bench.jobs) if job.script in kills.RESUMING]

    def attempt(job: Job, workspace: Workspace) -> list[corruption.Trial]:
        chance, place = random.Random(seed), bench.place()
        return list(corruption.try_states(job, workspace, bench.reference, place, chance, places))

    for trials in bench.each(learning, attempt):
        _add_trials(count, trials)
    return count


def damaged_in_runs(bench: Bench, seed: int, number: int) -> Count:
    """Some damaged files through Snakemake: told, deleted, and the same command again."""
    count = Count("damaged files in runs of Snakemake, deleted and made again", "corruption")
    chance = random.Random(seed)
    everywhere = [
        use for use in corruption.uses(bench.jobs, bench.reference)
        if use.path in use.reader.inputs
    ]  # fmt: skip
    cases = chance.sample(everywhere, min(number, len(everywhere)))

    def attempt(use: corruption.Use, workspace: Workspace) -> Problems:
        data = bytearray((workspace.folder / use.path).read_bytes())
        data[len(data) * 2 // 3] ^= 1
        problems = corruption.through_snakemake(use, bytes(data), workspace, bench.reference)
        return str(use), problems

    for case, problems in bench.each(cases, attempt, renewed=True):
        count.add(case, problems)
    return count


def power_cuts(
    bench: Bench,
    targets: Sequence[str] | None = None,
    mounts: Sequence[str] = tuple(power.OPTIONS),
    resume_each: int = 0,
) -> Count:
    """The power cut after every job of a run, and once more without syncs."""
    count = Count("power cuts", "power")
    reason = power.missing() or power.unmountable(bench.folder / "power")
    if reason:
        count.skipped = reason
        return count
    whole = list(targets or everything(bench.reference.workspace.config))
    place = bench.folder / "power"
    for name in mounts:
        options = power.OPTIONS[name]
        losses = power.cut_power(bench.reference, whole, place, options, True, resume_each)
        count.notes["power cuts"] += losses.cuts
        count.notes["files looked for"] += losses.files
        count.notes["files lost"] += len(losses.lost)
        count.notes["runs resumed"] += losses.resumed
        count.add(f"a run on ext4 ({name})", losses.lost + losses.problems)
    losses = power.cut_power(bench.reference, whole, place, synced=False)
    count.notes["files looked for without syncs"] += losses.files
    count.notes["files lost without syncs"] += len(losses.lost)
    seen = [] if losses.lost else ["nothing was lost: the test sees no losses"]
    count.add("a run without syncs, whose losses must be seen", seen + losses.problems)
    return count


def bad_input(bench: Bench) -> Count:
    """Every row of the table of bad input."""
    count = Count("rows of bad input", "input")
    with ThreadPoolExecutor(bench.workers) as pool:
        for row, problems in zip(
            spoiled.ROWS, pool.map(spoiled.problems_of, spoiled.ROWS), strict=True
        ):
            count.add(row.name, problems)
    return count
