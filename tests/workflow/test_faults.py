"""A short form of `make faults`: a few of each sort of kill, damage and power cut."""

from __future__ import annotations

import pytest

from faults import kills, parts
from faults.jobs import kept_jobs
from faults.reference import reference_of
from faults.setting import finish, with_everything

# What each sort of job is killed at here; `make faults` kills all jobs at all of their moments.
SHORT = {
    "write": ("generate_calibration", "render_report"),
    "rename": ("optimize_block", "visualize_activations"),
    "renamed": ("generate_image", "tune_weights"),
    "limit": ("cache_block_io",),
    "end": ("assemble_weights",),
}


@pytest.fixture(scope="module")
def bench(finished, tmp_path_factory) -> parts.Bench:
    """The finished run with the rules that it lacks, and copies to try things in."""
    folder = tmp_path_factory.mktemp("faults")
    whole = finished.copy(folder / "whole")
    whole.config = with_everything(whole.config)
    finish(whole)
    return parts.Bench(reference_of(whole), kept_jobs(whole), folder / "work", workers=2)


def test_killed_jobs_end_the_same(bench):
    cases = [
        (job, kill)
        for job, kill in parts.all_kills(bench)
        if job.rule in SHORT.get(kill.moment, ()) or (".resume" in kill.file and kill.nth != 3)
    ]
    count = parts.killed_jobs(bench, cases)
    assert count.cases > 20
    assert not count.failures


def test_a_run_that_is_killed_again_and_again_ends_the_same(bench):
    some = [job for job in kills.one_of_each(bench.jobs) if job.rule == "generate_calibration"]
    count = parts.killed_runs(bench, some, ["calibrate"], seed=3, rounds=2)
    assert count.cases == 2
    assert not count.failures


def test_an_orphan_may_outlive_the_next_run(bench):
    some = [job for job in kills.one_of_each(bench.jobs) if job.rule == "generate_calibration"]
    assert not parts.outrun_orphans(bench, some).failures


def test_damaged_files_are_told(bench):
    count = parts.damaged_files(bench, seed=1, one_of_each=True)
    assert count.cases > 25
    assert not count.failures
    assert count.notes["told"] > 20


def test_damaged_states_are_not_used(bench):
    assert not parts.damaged_states(bench, seed=1, places=slice(0, None, 4)).failures


@pytest.mark.damages_the_model
def test_damaged_files_from_elsewhere_are_told(bench):
    assert not parts.damaged_sources(bench, seed=1, places=slice(2, 3)).failures


def test_a_damaged_file_is_made_again_by_the_same_command(bench):
    assert not parts.damaged_in_runs(bench, seed=1, number=1).failures


def test_a_power_cut_loses_nothing_that_was_reported_as_finished(bench):
    count = parts.power_cuts(bench, ["calibrate"], ["names before contents"])
    if count.skipped:
        pytest.skip(count.skipped)
    assert not count.failures
    assert count.notes["files looked for"] > 10
    assert count.notes["files lost"] == 0
