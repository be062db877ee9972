"""An interrupted job goes on if nothing that it reads has changed, and ends with the same bytes."""

from __future__ import annotations

import itertools
import logging
import os
import shutil
from pathlib import Path

import pytest

import optimize_block
import tune_weights
from ditquant.activations.input_statistics import KIND as STATISTICS
from ditquant.activations.input_statistics import save_statistics
from ditquant.activations.observe import measure_image
from ditquant.artifacts import load_metadata, load_tensors, save_tensors
from ditquant.backend import mx
from ditquant.models.load import DTYPES
from ditquant.models.spec import read_spec
from ditquant.network.calibration import load_trajectory, save_trajectory
from ditquant.network.diffusionkit import load_network
from ditquant.weights import adaround, learning
from ditquant.weights.block_files import BLOCK_WEIGHTS
from ditquant.weights.block_io import BLOCK_IO
from ditquant.weights.learning import Resume, State, resume_key
from ditquant.weights.tuning import Tuner
from support.block_data import random_trajectory, write_block_io
from support.models import write_folder
from support.problems import full_recipe, tuned_recipe


def state_of(*values: float):
    state = State.before([mx.array(values)], mx.array([1.0, 0.0, 0.0, 0.0]))
    state.iteration, state.pending = 7, [0.1, 1 / 3]
    state.history = [{"iteration": 5, "error": 1e-7 / 3}]
    return state


def test_a_state_is_read_as_it_was_written(tmp_path):
    state = state_of(0.1, -2.5)
    Resume(tmp_path / "s.safetensors", "k").save(state)
    read = Resume(tmp_path / "s.safetensors", "k").load()
    assert read is not None
    for one, other in zip(read.arrays(), state.arrays(), strict=True):
        assert mx.array_equal(one, other)
    assert (read.iteration, read.pending, read.history) == (7, state.pending, state.history)


def test_another_job_or_a_damaged_file_starts_anew(tmp_path, caplog):
    path = tmp_path / "s.safetensors"
    caplog.set_level(logging.INFO, "ditquant")
    assert Resume(path, "k").load() is None
    assert not caplog.messages
    Resume(path, "k").save(state_of(0.1))
    assert Resume(path, "other").load() is None
    assert "other inputs or options" in caplog.messages[-1]
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    assert Resume(path, "k").load() is None
    assert "is damaged" in caplog.messages[-1]
    path.write_bytes(data[:40])
    assert Resume(path, "k").load() is None


def test_a_state_is_saved_each_minute(tmp_path):
    seconds = itertools.count(0, 13)
    resume = Resume(tmp_path / "s.safetensors", "k", clock=lambda: next(seconds))
    due = []
    for _ in range(12):
        due.append(resume.is_due())
        if due[-1]:
            resume.save(state_of(1.0))
    # Looked at every 13 seconds; a save looks at the clock once more.
    assert [at for at, now in enumerate(due) if now] == [4, 9]


def test_what_is_left_is_removed_with_the_state(tmp_path):
    path = tmp_path / ".mm00.resume.safetensors"
    Resume(path, "k").save(state_of(1.0))
    # Half of a write that was killed, by a process that is gone.
    (tmp_path / f".{path.stem}.123.partial.safetensors").write_bytes(b"half")
    Resume(path, "k").discard()
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------ whole jobs


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("model"))
    return {"name": "local", "checkpoint": str(folder), "dtype": "float32", "identity": "tiny"}


@pytest.fixture(scope="module")
def results(model, tmp_path_factory):
    """A run's folder with all that the two jobs read."""
    folder = tmp_path_factory.mktemp("run") / "results" / "tiny"
    network = load_network(read_spec("local", model["checkpoint"]), DTYPES["float32"])
    for image in range(3):
        write_block_io(folder / "block_io" / f"{image:04d}.safetensors", network, seed=image)
        trajectory = folder / "calibration" / f"{image:04d}.safetensors"
        save_trajectory(trajectory, random_trajectory(image, 2))
    measured = measure_image(network, random_trajectory(0, 2), [0, 1], "tiny", "0000", lambda: None)
    save_statistics(folder / "activations" / "layer_statistics.safetensors", measured)
    rtn = full_recipe("rtn").params()
    for block in ("mm00", "mm01"):
        place = folder / "weights" / "x" / "blocks" / block
        files = {"block_io": [str(path) for path in sorted((folder / "block_io").iterdir())]}
        optimize_block.main(
            files=files, weights=f"{place}.safetensors", result=f"{place}.json",
            params={"model": model, "block": block, "recipe": rtn, "seed": 0, "code": "c"},
        )  # fmt: skip
    return folder


class Job:
    """One of the two jobs that learn, on a copy of the run's folder."""

    def __init__(self, name: str, folder: Path, model: dict):
        self.name, self.folder = name, folder
        blocks = folder / "weights" / "x" / "blocks"
        self.params = {"model": model, "seed": 3, "code": "abc"}
        if name == "optimize_block":
            recipe = full_recipe("adaround", iterations=6, inputs="mixed", balance="smoothquant")
            self.params |= {"block": "mm01", "recipe": recipe.params()}
            self.names = {
                "block_io": sorted((folder / "block_io").iterdir()),
                "before": [blocks / "mm00.safetensors"],
                "statistics": [folder / "activations" / "layer_statistics.safetensors"],
            }
            self.made = folder / "weights" / "y" / "blocks" / "mm01"
        else:
            recipe = tuned_recipe(
                tune_iterations=6, tune_batch_size=2, tune_learning_rate=0.01,
                tune_rows_at_once=None, tune_stride=1,
            )  # fmt: skip
            self.params |= {"recipe": recipe.params()}
            self.names = {
                "blocks": sorted(blocks.glob("*.safetensors")),
                "trajectories": sorted((folder / "calibration").iterdir()),
            }
            self.made = folder / "weights" / "y" / "tuned"

    @property
    def learner(self) -> type:
        return adaround.Learner if self.name == "optimize_block" else Tuner

    def run(self) -> dict[str, bytes]:
        files = {name: [str(path) for path in paths] for name, paths in self.names.items()}
        script = {"optimize_block": optimize_block, "tune_weights": tune_weights}[self.name]
        outputs = [f"{self.made}.safetensors", f"{self.made}.json"]
        script.main(files=files, weights=outputs[0], result=outputs[1], params=self.params)
        assert not [path for path in self.made.parent.iterdir() if path.name.startswith(".")]
        return {Path(path).suffix: Path(path).read_bytes() for path in outputs}

    def first_iteration(self, monkeypatch) -> int:
        """Where the job starts; it is stopped there."""
        seen = []

        def stopping(learner, state):
            seen.append(state.iteration)
            raise Stop

        with monkeypatch.context() as patched:
            patched.setattr(self.learner, "iterate", stopping)
            with pytest.raises(Stop):
                self.run()
        return seen[0]


class Stop(Exception):
    """Stands for a kill."""


@pytest.fixture(params=["optimize_block", "tune_weights"])
def killed(request, results, model, tmp_path, monkeypatch) -> Job:
    """A job that was killed after four iterations, its state saved after each."""
    folder = tmp_path / "results" / "tiny"
    shutil.copytree(results, folder)
    job = Job(request.param, folder, dict(model))
    monkeypatch.setattr(learning, "SAVE_SECONDS", 0.0)
    iterate = job.learner.iterate

    def dying(learner, state):
        if state.iteration == 4:
            raise Stop
        iterate(learner, state)

    with monkeypatch.context() as patched:
        patched.setattr(job.learner, "iterate", dying)
        with pytest.raises(Stop):
            job.run()
    return job


def test_a_killed_job_ends_with_the_same_bytes(killed, monkeypatch):
    assert killed.first_iteration(monkeypatch) == 4
    resumed = killed.run()
    assert killed.run() == resumed


def test_touched_and_moved_files_are_the_same_files(killed, monkeypatch):
    for paths in killed.names.values():
        for path in paths:
            os.utime(path, (1, 1))
    assert killed.first_iteration(monkeypatch) == 4
    moved = killed.folder.parents[1] / "elsewhere" / "results" / "renamed"
    moved.parent.mkdir(parents=True)
    killed.folder.rename(moved)
    again = Job(killed.name, moved, killed.params["model"])
    assert again.first_iteration(monkeypatch) == 4


def change(path: Path) -> None:
    """The same file with other values in one tensor."""
    if path.parent.name == "calibration":
        trajectory = load_trajectory(path)
        trajectory.latents[0, 0, 0, 0] += 0.01
        save_trajectory(path, trajectory)
        return
    kind = {"block_io": BLOCK_IO, "blocks": BLOCK_WEIGHTS, "activations": STATISTICS}
    kind = kind[path.parent.name]
    tensors, metadata = dict(load_tensors(path, kind)), load_metadata(path, kind)
    name = min(name for name, one in tensors.items() if one.dtype in (mx.float16, mx.float32))
    tensors[name] = tensors[name] * 1.01
    save_tensors(path, tensors, kind, metadata)


def test_every_input_counts_by_its_content(killed, monkeypatch):
    for name, paths in killed.names.items():
        for path in paths:
            kept = path.with_suffix(".kept")
            shutil.copy2(path, kept)
            change(path)
            shutil.copystat(kept, path)
            assert path.stat().st_size == kept.stat().st_size
            assert killed.first_iteration(monkeypatch) == 0, (name, path)
            kept.rename(path)
            assert killed.first_iteration(monkeypatch) == 4, (name, path)


def test_every_parameter_counts(killed):
    files = killed.names
    keys = {resume_key(files, killed.params)}
    changed = [{**killed.params, name: "another"} for name in killed.params]
    for group in ("model", "recipe"):
        own = killed.params[group]
        changed += [{**killed.params, group: {**own, name: "another"}} for name in own]
    keys |= {resume_key(files, params) for params in changed}
    assert len(keys) == 1 + len(changed)


def test_every_file_counts_by_its_place_in_the_job(killed):
    files = killed.names
    keys = [resume_key(files, killed.params)]
    for name, paths in files.items():
        keys.append(resume_key({**files, name: paths[::-1]}, killed.params))
        keys.append(resume_key({**files, name: paths[:-1]}, killed.params))
        less = {other: files[other] for other in files if other != name}
        keys.append(resume_key(less, killed.params))
    # A list of one is the same in both directions.
    single = sum(len(paths) == 1 for paths in files.values())
    assert len(set(keys)) == len(keys) - single
