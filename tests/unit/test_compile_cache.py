"""MLX's folder of compiled kernels: one of the user's own, or none."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from ditquant.backend import compile_cache, is_accelerated
from ditquant.job import job
from support.users import NOBODY, another_user, as_nobody, needs_root

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(platform.system() != "Linux", reason="Metal has folders of its own")


@pytest.fixture
def places(tmp_path, monkeypatch) -> SimpleNamespace:
    """A cache and a temporary folder; what the module records and sets is put back."""
    tmp_path.chmod(0o755)
    cache, temporary = tmp_path / "cache", tmp_path / "tmp"
    cache.mkdir(mode=0o700)
    temporary.mkdir()
    temporary.chmod(0o1777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(compile_cache, "COMPILE_CACHE", compile_cache.CompileCache())
    own = temporary / f"ditquant-{os.geteuid()}"
    return SimpleNamespace(cache=cache, temporary=temporary, own=own)


def choose(compiles: Callable[[], None] = lambda: None) -> compile_cache.CompileCache:
    compile_cache.use_own_folder(compiles, give_up=lambda: None)
    return compile_cache.COMPILE_CACHE


def test_the_users_cache_is_taken(places):
    assert choose().folder == places.cache / "ditquant"
    assert os.environ["TMPDIR"] == str(places.cache / "ditquant")
    assert tempfile.gettempdir() == str(places.temporary)
    assert (places.cache / "ditquant").stat().st_mode & 0o777 == 0o700


def planted_link(cache: Path) -> None:
    (cache.parent / "elsewhere").mkdir()
    (cache / "ditquant").symlink_to(cache.parent / "elsewhere")


def planted_open(cache: Path) -> None:
    (cache / "ditquant").mkdir()
    (cache / "ditquant").chmod(0o770)


def planted_file(cache: Path) -> None:
    (cache / "ditquant").write_bytes(b"")


def open_cache(cache: Path) -> None:
    cache.chmod(0o777)


def planted_by_another(cache: Path) -> None:
    (cache / "ditquant").mkdir(mode=0o755)
    os.chown(cache / "ditquant", NOBODY, NOBODY)


@pytest.mark.parametrize(
    "plant",
    [
        planted_link,
        planted_open,
        planted_file,
        open_cache,
        pytest.param(planted_by_another, marks=needs_root),
    ],
)
def test_a_folder_that_others_can_write_to_is_avoided(places, plant):
    plant(places.cache)
    assert choose().folder == places.own


@pytest.mark.parametrize("name", ['a "quoted"', "a $HOME", "a `date`", "a\\b"])
def test_paths_that_a_shell_would_change_are_avoided(places, monkeypatch, name):
    monkeypatch.setenv("XDG_CACHE_HOME", str(places.cache / name))
    assert choose().folder == places.own


@pytest.mark.parametrize("home", ["relative", "/proc/nowhere"])
def test_without_a_cache_a_folder_among_temporary_files_is_taken(places, monkeypatch, home):
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    assert choose().folder == places.own


def test_where_nothing_compiles_the_reasons_are_kept(places):
    def fails() -> None:
        raise RuntimeError("Could not load C++ shared library /x: failed to map segment from it")

    given_up: list[bool] = []
    compile_cache.use_own_folder(fails, lambda: given_up.append(True))
    assert given_up == [True]
    assert compile_cache.COMPILE_CACHE.folder is None
    assert compile_cache.COMPILE_CACHE.problem == "; ".join(
        f"{folder}: nothing may be executed there (noexec)"
        for folder in (places.cache / "ditquant", places.own)
    )
    assert os.environ["TMPDIR"] == str(places.temporary)


@another_user
def test_two_users_have_two_folders(places):
    shared = Path(tempfile.mkdtemp(dir="/tmp"))  # tmp_path is closed to others
    shared.chmod(0o1777)
    tempfile.tempdir = str(shared)
    os.environ["XDG_CACHE_HOME"] = "/proc/nowhere"
    try:
        assert as_nobody(lambda: choose().folder) == str(shared / f"ditquant-{NOBODY}")
        assert choose().folder == shared / "ditquant-0"
        # One plants what the other would load.
        (shared / "ditquant-0").rmdir()
        as_nobody(lambda: (shared / "ditquant-0").mkdir(mode=0o777))
        assert choose().problem == (
            f"/proc/nowhere/ditquant: No such file or directory; "
            f"{shared}/ditquant-0: it belongs to another user"
        )
    finally:
        subprocess.run(["rm", "-r", str(shared)], check=True)


PROGRAM = """
from ditquant.backend import describe_device, mx
print(mx.compile(lambda x: 1 + 2 * x)(mx.ones(1)).item(), describe_device())
"""


def start(cache: Path, temporary: Path) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(cache),
        "TMPDIR": str(temporary),
        "PYTHONPATH": str(ROOT / "scripts"),
    }
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> str:
    output, error = process.communicate()
    assert process.returncode == 0, error
    assert output.startswith("3.0 "), output
    return output


def test_kernels_stay_and_two_processes_may_compile_at_once(places):
    """The folder that MLX would take holds what another user planted."""
    (places.temporary / "mlx").write_bytes(b"")
    for process in [start(places.cache, places.temporary) for _ in range(2)]:
        assert "Slower" not in finish(process)
    made = {path: path.stat().st_mtime_ns for path in places.cache.rglob("*.so")}
    finish(start(places.cache, places.temporary))
    assert made == {path: path.stat().st_mtime_ns for path in places.cache.rglob("*.so")}
    assert bool(made) == (shutil.which("g++") is not None and not is_accelerated())


@needs_root
def test_where_nothing_may_be_executed_the_work_goes_on(places):
    mounted = places.cache / "mounted"
    mounted.mkdir()
    options = ["-t", "tmpfs", "-o", "noexec,size=8m,mode=755", "none"]
    if subprocess.run(["mount", *options, str(mounted)], capture_output=True).returncode:
        pytest.skip("this machine mounts nothing")
    try:
        places.own.write_bytes(b"")
        output = finish(start(mounted, places.temporary))
    finally:
        subprocess.run(["umount", str(mounted)], check=True)
    assert "Slower, since MLX can compile nothing" in output
    assert "nothing may be executed there (noexec)" in output
    assert "set XDG_CACHE_HOME to a folder of your own" in output


def test_a_kernel_that_cannot_be_compiled_ends_a_job_with_advice(tmp_path):
    log = tmp_path / "job.log"
    asked = SimpleNamespace(log=[str(log)], rule="a_rule", params={}, input=[], output=[])
    with pytest.raises(SystemExit), job(asked):
        raise RuntimeError(
            "[Compile::eval_cpu] Failed to compile function X: Failed to execute command\n"
            "ld: final link failed: No space left on device\ncollect2: error: ld returned 1"
        )
    text = log.read_text()
    assert "Error in a_rule: MLX could not compile a kernel, or load one" in text
    assert "run the same command again" in text
    assert "(the disk is full)" in text
    assert "Traceback" not in text
    assert compile_cache.compile_advice(RuntimeError("something else")) is None
