"""Real Snakemake runs on a small random model, in folders of their own."""

from __future__ import annotations

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
def model_folder(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def configuration(model_folder, tmp_path_factory) -> dict:
    """The tiny run."""
    return local_configuration(tmp_path_factory.mktemp("prompts"), model_folder)


@pytest.fixture
def workspace(tmp_path, configuration) -> Workspace:
    """An empty folder."""
    return Workspace(tmp_path, yaml.safe_load(yaml.safe_dump(configuration)))


@pytest.fixture(scope="session")
def finished(tmp_path_factory, configuration) -> Workspace:
    """A finished run of everything, with its jobs' scripts; tests that change it take a copy."""
    workspace = Workspace(tmp_path_factory.mktemp("finished"), configuration)
    workspace.snakemake("--skip-script-cleanup")
    return workspace
