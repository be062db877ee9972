"""Seconds of a job by part, as its log tells them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from ditquant import job_times
from ditquant.backend import highest_memory_bytes, mx, peak_memory_bytes, reset_peak_memory
from ditquant.job import job
from ditquant.progress import ticking

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def spent(monkeypatch):
    """What counts in this test alone."""
    seconds = {"start": 0.0, "loading": 0.0, "compiling": 0.0}
    monkeypatch.setattr(job_times, "_spent", seconds)
    return seconds


@pytest.fixture
def clock(monkeypatch):
    """Time that passes when the test says so."""
    now = SimpleNamespace(time=100.0)
    monkeypatch.setattr(time, "monotonic", lambda: now.time)
    return now


def test_the_age_of_a_process_is_its_own():
    """A child that is asked at once is younger than this process, and no older than it took."""
    code = "import time; from ditquant.job_times import process_age; print(process_age())"
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(SCRIPTS)},
        capture_output=True,
        text=True,
    )
    took = time.monotonic() - began
    # The kernel tells of a hundredth of a second.
    assert 0 < float(done.stdout) <= took + 0.02, done.stderr
    assert float(done.stdout) < job_times.process_age()


def test_what_is_nested_counts_once(spent, clock):
    @job_times.counted_as("loading")
    def load():
        clock.time += 2.0

    @job_times.counted_as("start")
    def import_it():
        clock.time += 8.0

    with job_times.counted_as("loading"):
        clock.time += 1.0
        load()
        import_it()
        clock.time += 4.0
    load()
    assert spent == {"start": 8.0, "loading": 9.0, "compiling": 0.0}


def test_loading_that_fails_ends_as_loading(spent, clock):
    @job_times.counted_as("loading")
    def fail():
        clock.time += 1.0
        raise ValueError("no such file")

    with pytest.raises(ValueError, match="no such file"):
        fail()
    with job_times.counted_as("loading"):
        clock.time += 1.0
    assert spent["loading"] == 2.0


@pytest.mark.parametrize(
    ("pieces", "compiling"),
    [
        ([5.0, 1.0, 1.0, 1.0, 1.0], 4.0),  # told when a piece is done
        ([0.5, 5.0, 1.0, 1.0, 1.0], 3.5),  # told when it is ordered
        ([5.0, 1.0, 1.0, 9.0, 1.0], 4.0),  # a save on the way
        ([0.5, 0.5, 1.0, 1.0], 0.0),
        ([5.0, 1.0, 1.0], 0.0),  # too few to tell
        ([], 0.0),
    ],
)
def test_first_pieces_beyond_later_ones(spent, clock, pieces, compiling):
    with ticking("steps", len(pieces)) as tick:
        for seconds in pieces:
            clock.time += seconds
            tick()
    assert spent["compiling"] == pytest.approx(compiling)


def test_the_rest_is_work(spent):
    spent |= {"start": 0.25, "loading": 2.0, "compiling": 1.5}
    parts = job_times.split(age=0.5, seconds=9.5)
    assert parts == {"start": 0.75, "loading": 2.0, "compiling": 1.5, "work": 5.75}
    assert tuple(parts) == job_times.PARTS


@pytest.mark.parametrize("peak", [None, 5_312_000_000])
def test_what_is_told_is_read_again(peak):
    parts = {"start": 0.5, "loading": 2.25, "compiling": 0.0, "work": 61.75}
    log = (
        f"12:00:00 steps: 5 of 5 in 0:05\n12:00:00 rule done in {job_times.describe(parts, peak)}\n"
    )
    assert job_times.read_times(log) == parts | ({} if peak is None else {"peak_bytes": peak})


def test_an_unfinished_job_tells_nothing():
    assert job_times.read_times("12:00:00 Error in rule: no such file\n") == {}


def test_the_highest_peak_survives_a_reset():
    mx.eval(mx.zeros((1 << 22,)))
    before = peak_memory_bytes()
    reset_peak_memory()
    assert peak_memory_bytes() < before
    assert highest_memory_bytes() >= before >= 4 << 22


def test_a_job_ends_its_log_with_its_times(tmp_path, spent):
    log = tmp_path / "job.log"
    with job(
        SimpleNamespace(rule="generate_calibration", log=[str(log)], params={}, input=[], output=[])
    ):
        spent["loading"] = 0.25
    text = log.read_text("utf-8")
    assert "generate_calibration done in " in text
    times = job_times.read_times(text)
    assert times["loading"] == 0.25
    assert set(times) == {*job_times.PARTS, "peak_bytes"}
