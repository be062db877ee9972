"""Real Snakemake runs on a small random model, in folders of their own."""

from __future__ import annotations

import copy
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from support.models import write_folder
from support.workspace import (
    ROOT,
    TINY,
    Workspace,
    is_timed,
    local_configuration,
    signal_group,
    wait_for,
)

__all__ = ["ROOT", "TINY", "Workspace", "is_timed", "signal_group", "wait_for"]


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """A folder that all processes of this run of pytest share."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    return folder


def made_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """The folder, made by the process that comes first; others wait for it."""
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder.with_suffix(".done")
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def configuration(shared) -> dict:
    """The tiny run, on a model of its own."""

    def write(folder: Path) -> None:
        config = local_configuration(folder, write_folder(folder / "tiny"))
        (folder / "config.yaml").write_text(yaml.safe_dump(config))

    return yaml.safe_load((made_once(shared / "model", write) / "config.yaml").read_text())


@pytest.fixture(autouse=True)
def _model_is_whole(shared, configuration, request) -> Iterator[None]:
    """Other processes wait while a test damages the model that all read."""
    alone = request.node.get_closest_marker("damages_the_model") is not None
    with (shared / "model.in_use").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield


@pytest.fixture
def model_folder(configuration) -> Path:
    return Path(configuration["model"]["checkpoint"])


@pytest.fixture
def workspace(tmp_path, configuration) -> Workspace:
    """An empty folder."""
    return Workspace(tmp_path, copy.deepcopy(configuration))


@pytest.fixture(scope="session")
def finished(shared, configuration) -> Workspace:
    """A finished run of everything, with its jobs' scripts; runs in it take a copy."""

    def run(folder: Path) -> None:
        Workspace(folder, configuration).snakemake("--skip-script-cleanup")

    return Workspace(made_once(shared / "finished", run), configuration)


@pytest.fixture
def drawn(workspace, finished) -> Workspace:
    """The results of the finished run in another folder: its images and streams serve again."""
    shutil.copytree(finished.results, workspace.results)
    return workspace
