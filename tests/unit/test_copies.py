"""Files from elsewhere are dated, made known to Snakemake, or disowned; contents never change."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from ditquant.planning.copies import NOTES, recognise_copies
from ditquant.planning.snakemake_records import SnakemakeRecords
from ditquant.records import TIMESTAMP, read_records, write_record
from ditquant.seals import BLANK, sealed_json

RUN = Path("results/demo")
# Output -> inputs, in the order in which the jobs ran.
JOBS = {
    "conditioning/prompts.txt": [],
    "calibration/0000.txt": ["conditioning/prompts.txt"],
    "calibration/0001.txt": ["conditioning/prompts.txt"],
    "weights/mm00.txt": ["calibration/0000.txt", "calibration/0001.txt"],
    "weights/model.txt": ["weights/mm00.txt"],
}


def make(output: str, text: str | None = None) -> None:
    """What a job and Snakemake do: the output, its benchmark and both records."""
    path, inputs = str(RUN / output), [str(RUN / name) for name in JOBS[output]]
    temporary = Path(f"{path}.partial")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_text(text or f"content of {output}")
    temporary.rename(path)
    write_record("a_rule", [{"option": output}, 4], inputs, [path])
    benchmark = RUN / "benchmarks" / f"{Path(output).name}.tsv"
    benchmark.parent.mkdir(parents=True, exist_ok=True)
    benchmark.write_text("s\n1\n")
    SnakemakeRecords().take_over(path, record_of(path))


def record_of(path: str):
    return next(record for _, record in read_records(RUN) if path in record.outputs)


def times() -> dict[str, int]:
    return {name: (RUN / name).stat().st_mtime_ns for name in JOBS}


def is_in_order(without: tuple[str, ...] = ()) -> bool:
    """Whether Snakemake would find every output newer than its inputs; a benchmark counts too."""
    for output, inputs in JOBS.items():
        files = (RUN / output, RUN / "benchmarks" / f"{Path(output).name}.tsv")
        made = min(file.stat().st_mtime_ns for file in files)
        if output not in without and any(times()[name] > made for name in inputs):
            return False
    return True


def backwards(folder: Path) -> None:
    """Dates as a copy may have them: what was made last is the oldest."""
    for number, name in enumerate(JOBS):
        os.utime(folder / name, (2_000_000_000 - number, 2_000_000_000 - number))
    for path in (folder / "benchmarks").iterdir():
        os.utime(path, (1_000_000_000, 1_000_000_000))


@pytest.fixture
def original(tmp_path, monkeypatch) -> Path:
    """A finished run, planned once more, in the folder we are in."""
    folder = tmp_path / "original"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for output in JOBS:
        make(output)
    assert recognise_copies(RUN) == []
    return folder


@pytest.fixture
def elsewhere(original, tmp_path, monkeypatch) -> Path:
    """We are in an empty folder."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def copy(original: Path, *names: str) -> None:
    for name in names:
        shutil.copytree(original / name, name, copy_function=shutil.copyfile)
    backwards(RUN)


def disowned() -> set[str]:
    """Outputs that Snakemake will redo whatever the rule's parameters are."""
    snakemake = SnakemakeRecords()
    return {
        name for name in JOBS
        if len(snakemake.params(str(RUN / name)) or "is unknown, which redoes nothing") == 1
    }  # fmt: skip


@pytest.mark.parametrize("names", [(".snakemake", "results"), ("results",)])
def test_a_copy_is_dated_and_known(original, elsewhere, names):
    copy(original, *names)
    assert not is_in_order()
    content = {name: (RUN / name).read_bytes() for name in JOBS}
    assert recognise_copies(RUN) == []
    assert is_in_order()
    assert content == {name: (RUN / name).read_bytes() for name in JOBS}
    snakemake = SnakemakeRecords()
    assert all(snakemake.agrees(str(RUN / name), record_of(str(RUN / name))) for name in JOBS)
    assert disowned() == set()


def test_what_was_recognised_is_not_looked_at_again(original, elsewhere, monkeypatch):
    copy(original, "results")
    recognise_copies(RUN)
    monkeypatch.setattr("ditquant.planning.copies.read_records", None)
    before = times()
    assert recognise_copies(RUN) == []
    assert times() == before


def test_a_run_may_be_renamed(original, elsewhere):
    shutil.copytree(original / RUN, "results/other", copy_function=shutil.copyfile)
    recognise_copies(Path("results/other"))
    path = "results/other/weights/model.txt"
    found = SnakemakeRecords()._store._read_record(path)
    assert found.input == ["results/other/weights/mm00.txt"]
    assert found.params == sorted([repr({"option": "weights/model.txt"}), "4"])


def test_a_touched_file_is_left_to_snakemake(original):
    os.utime(RUN / "calibration/0000.txt")
    before = times()
    assert recognise_copies(RUN) == []
    assert times() == before
    assert not is_in_order()


def test_a_copy_over_the_files_that_are_there_is_recognised(original, tmp_path):
    shutil.copytree(RUN, tmp_path / "backup")
    inode = (RUN / "weights/mm00.txt").stat().st_ino
    shutil.copytree(tmp_path / "backup", RUN, copy_function=shutil.copyfile, dirs_exist_ok=True)
    backwards(RUN)
    assert (RUN / "weights/mm00.txt").stat().st_ino == inode
    recognise_copies(RUN)
    assert is_in_order()


def test_what_was_made_here_since_is_left_to_snakemake(original):
    make("calibration/0000.txt", "another image")
    before = times()
    recognise_copies(RUN)
    assert times() == before
    assert disowned() == set()


def test_an_exchanged_input_redoes_what_was_made_from_the_other(original, elsewhere, monkeypatch):
    monkeypatch.chdir(original)
    make("calibration/0000.txt", "another image")
    monkeypatch.chdir(elsewhere)
    copy(original, "results")
    recognise_copies(RUN)
    assert disowned() == {"weights/mm00.txt"}
    assert "another results/demo/calibration/0000.txt" in SnakemakeRecords().params(
        str(RUN / "weights/mm00.txt")
    )[0]  # fmt: skip
    assert is_in_order(without=("weights/mm00.txt",))


def test_prompts_may_have_been_added_to_a_shard(original, elsewhere, monkeypatch):
    monkeypatch.chdir(original)
    make("conditioning/prompts.txt", "more prompts")
    monkeypatch.chdir(elsewhere)
    copy(original, "results")
    recognise_copies(RUN)
    assert disowned() == set()


def test_files_without_a_record_are_disowned(original, elsewhere):
    copy(original, "results")
    shutil.rmtree(RUN / ".records" / "weights")
    (RUN / "calibration/0001.txt").write_text("an image by somebody else")
    recognise_copies(RUN)
    assert disowned() == {"calibration/0001.txt", "weights/mm00.txt", "weights/model.txt"}


def test_results_of_a_release_without_records_are_left_to_snakemake(original):
    shutil.rmtree(RUN / ".records")
    shutil.rmtree(NOTES)
    recognise_copies(RUN)
    assert disowned() == set()


@pytest.mark.parametrize(
    "broken",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content.replace(b"a_rule", b"b_rule"),
        lambda content: sealed_json({**json.loads(content), "digest": BLANK, "version": 9}),
        lambda content: sealed_json({"digest": BLANK, "format": "ditquant.report", "version": 1}),
    ],
    ids=["emptied", "truncated", "changed", "another release", "another kind"],
)
def test_a_broken_record_is_none(original, elsewhere, broken):
    copy(original, "results")
    file = RUN / ".records/weights/mm00.txt.json"
    file.write_bytes(broken(file.read_bytes()))
    recognise_copies(RUN)
    assert disowned() == {"weights/mm00.txt"}


@pytest.mark.parametrize("broken", ["", "[]", "{", '{"a": 3}'])
def test_broken_notes_are_made_again(original, broken):
    notes = NOTES / "demo.json"
    notes.write_text(broken)
    recognise_copies(RUN)
    assert str(RUN / "weights/model.txt") in json.loads(notes.read_text())


def test_records_that_come_after_their_files_count(original, elsewhere):
    copy(original, "results")
    records = (RUN / ".records").rename("records")
    recognise_copies(RUN)
    assert disowned() == set(JOBS)
    records.rename(RUN / ".records")
    recognise_copies(RUN)
    assert disowned() == set()


@pytest.mark.parametrize("lost", [".snakemake", ".snakemake/metadata"])
def test_snakemakes_lost_records_are_filled_in(original, lost):
    shutil.rmtree(lost)
    before = times()
    recognise_copies(RUN)
    assert times() == before
    assert all(SnakemakeRecords().is_known(str(RUN / name)) for name in JOBS)


def test_a_job_that_has_not_ended_is_left_alone(original):
    path = str(RUN / "weights/model.txt")
    SnakemakeRecords()._store._mark_incomplete(path, None)
    Path(path).unlink()
    Path(path).write_text("half")
    recognise_copies(RUN)
    assert disowned() == set()
    assert path not in json.loads((NOTES / "demo.json").read_text())


def test_a_folder_that_is_an_output_is_dated_by_its_file(original, elsewhere, monkeypatch):
    monkeypatch.chdir(original)
    folder = RUN / "tokenizer"
    folder.mkdir()
    (folder / "vocab.txt").write_text("words")
    (folder / TIMESTAMP).touch()
    write_record("a_rule", [], [str(RUN / "weights/model.txt")], [str(folder)])
    monkeypatch.chdir(elsewhere)
    copy(original, "results")
    os.utime(folder / TIMESTAMP, (1_000_000_000, 1_000_000_000))
    recognise_copies(RUN)
    made = (folder / TIMESTAMP).stat().st_mtime_ns
    assert made >= (RUN / "weights/model.txt").stat().st_mtime_ns
    assert SnakemakeRecords().is_known(str(folder))
    assert not SnakemakeRecords().is_known(str(folder / "vocab.txt"))


def test_a_folder_that_cannot_be_written_is_a_warning(original, elsewhere, monkeypatch):
    copy(original, "results")

    def refuse(*args, **kwargs):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("ditquant.planning.copies.os.utime", refuse)
    (warning,) = recognise_copies(RUN)
    assert "cannot be dated" in warning


def test_nothing_is_written_before_there_are_results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recognise_copies(RUN) == []
    assert list(tmp_path.iterdir()) == []
