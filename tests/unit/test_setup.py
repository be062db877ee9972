"""`envs/setup.sh` with a Python that only plays: what it does when, and what it says."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Answers like a Python of version $FAKE_VERSION; `-m venv` copies itself, `-m pip` takes notes.
FAKE = """#!/bin/sh
case "$1 $2" in
    "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && echo venv >>"$FAKE_LOG" ;;
    "-m pip") echo "$@" >>"$FAKE_LOG"; exit "${FAKE_PIP_STATUS:-0}" ;;
    *version_info*3*) echo "${FAKE_VERSION:-3.12.1}"; [ "${FAKE_NEW:-1}" = 1 ] ;;
    *platform*) echo "$FAKE_PROBLEM" ;;
    *) : ;;
esac
"""


class Checkout:
    def __init__(self, folder: Path):
        self.folder = folder
        self.venv = folder / ".venv"
        self.log = folder / "log"
        bin_folder = folder / "bin"
        (folder / "envs").mkdir()
        bin_folder.mkdir()
        for name in ("Makefile", "pyproject.toml", "requirements.lock", "requirements-cuda13.lock"):
            shutil.copy(ROOT / name, folder / name)
        shutil.copy(ROOT / "envs" / "setup.sh", folder / "envs" / "setup.sh")
        for name in ("python3.13", "python3.12", "python3.11", "python3"):
            (bin_folder / name).write_text(FAKE)
            (bin_folder / name).chmod(0o755)

    def setup(self, *words: str, **variables: str) -> tuple[int, str, list[str]]:
        """Runs `make setup`; exit status, what it said, and what Python was asked for."""
        self.log.write_text("")
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("MAKE")},
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "FAKE_LOG": str(self.log),
            "FAKE_PROBLEM": "",
            **variables,
        }
        environment.pop("PYTHON", None)
        run = subprocess.run(
            ["make", "--no-print-directory", "setup", *words],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        calls = [line.split(" install ")[-1] for line in self.log.read_text().splitlines()]
        return run.returncode, run.stdout, calls


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def steps(calls: list[str]) -> list[str]:
    """`venv`, then what pip was given last: the lock's name or DiffusionKit's pin."""
    return [call.split()[-1] for call in calls]


LOCKED = ["requirements.lock", "diffusionkit==0.5.2"]


def test_first_run_installs_and_second_does_nothing(checkout: Checkout) -> None:
    status, _, calls = checkout.setup()
    assert status == 0
    assert steps(calls) == ["venv", *LOCKED]
    assert "--no-deps" in calls[-1]
    assert checkout.setup() == (0, "", [])


def test_changed_lock_updates_the_same_environment(checkout: Checkout) -> None:
    checkout.setup()
    with (checkout.folder / "requirements.lock").open("a") as lock:
        lock.write("# changed\n")
    assert steps(checkout.setup()[2]) == LOCKED
    assert checkout.setup()[2] == []


@pytest.mark.parametrize("damage", ["interrupted", "interpreter gone"])
def test_unfinished_or_broken_environment_is_made_anew(checkout: Checkout, damage: str) -> None:
    checkout.setup()
    leftover = checkout.venv / "leftover"
    leftover.touch()
    if damage == "interrupted":
        (checkout.venv / "ditquant-setup-unfinished").touch()
    else:
        (checkout.venv / "bin" / "python").unlink()
    status, said, calls = checkout.setup()
    assert (status, steps(calls)) == (0, ["venv", *LOCKED])
    assert "making it anew" in said
    assert not leftover.exists()


def test_failed_pip_is_said_and_redone(checkout: Checkout) -> None:
    status, said, _ = checkout.setup(FAKE_PIP_STATUS="1")
    assert status != 0
    assert "pip could not install the packages" in said
    assert steps(checkout.setup()[2]) == ["venv", *LOCKED]


def test_other_extra_gets_its_own_lock_and_environment(checkout: Checkout) -> None:
    checkout.setup()
    _, _, calls = checkout.setup("EXTRA=cuda13")
    assert steps(calls) == ["venv", "requirements-cuda13.lock", LOCKED[1]]


def test_moved_checkout_is_set_up_again(checkout: Checkout, tmp_path: Path) -> None:
    checkout.setup()
    (tmp_path / "elsewhere").mkdir()
    moved = Checkout(tmp_path / "elsewhere")
    shutil.copytree(checkout.venv, moved.venv)
    assert steps(moved.setup()[2])[-2:] == LOCKED


def test_old_python_is_refused_in_one_message(checkout: Checkout) -> None:
    status, said, calls = checkout.setup(FAKE_VERSION="3.9.6", FAKE_NEW="0")
    assert status != 0
    assert "Python 3.11 or newer is needed" in said
    assert "python3 is 3.9.6" in said
    assert "make setup PYTHON=" in said
    assert calls == []
    assert not checkout.venv.exists()
    # make adds one line of its own
    assert len(said.strip().splitlines()) == 3


def test_chosen_python_that_does_not_run_is_refused(checkout: Checkout) -> None:
    status, said, _ = checkout.setup("PYTHON=/nowhere/python")
    assert status != 0
    assert "none that runs" in said


def test_unknown_extra_and_unsupported_machine_are_refused(checkout: Checkout) -> None:
    status, said, _ = checkout.setup("EXTRA=rocm")
    assert status != 0
    assert "EXTRA=rocm is unknown" in said
    status, said, calls = checkout.setup(FAKE_PROBLEM="MLX needs macOS 14 or newer")
    assert status != 0
    assert "MLX needs macOS 14 or newer" in said
    assert calls == []


def test_a_folder_with_spaces_and_a_python_in_one(tmp_path: Path) -> None:
    folder = tmp_path / "my 'own' folder"
    folder.mkdir()
    checkout = Checkout(folder)
    status, _, calls = checkout.setup()
    assert (status, steps(calls)) == (0, ["venv", *LOCKED])
    python = folder / "a python"
    shutil.copy(folder / "bin" / "python3", python)
    shutil.rmtree(checkout.venv)
    environment = {**os.environ, "PYTHON": str(python), "FAKE_LOG": str(checkout.log)}
    setup = ["sh", str(folder / "envs" / "setup.sh")]
    done = subprocess.run(setup, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"making .venv with {python}" in done.stdout


@pytest.mark.parametrize("name", ["a{b", "a}b", "a[b", "a]b"])
def test_a_folder_that_snakemake_cannot_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    checkout = Checkout(tmp_path / name)
    status, output, calls = checkout.setup()
    assert status != 0
    assert f"the path of this folder, {tmp_path / name}, holds braces or brackets" in output
    assert calls == []
    assert not checkout.venv.exists()
