"""Files are complete or absent, and say what is wrong with them."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from ditquant.artifacts import (
    atomic_path,
    check_safetensors,
    load_metadata,
    load_tensors,
    read_json,
    save_tensors,
    write_json,
    write_text,
)
from ditquant.backend import mx
from ditquant.errors import UserError

SCRIPTS = Path(__file__).parents[2] / "scripts"


def test_failure_keeps_the_old_file_and_leaves_no_litter(tmp_path):
    path = tmp_path / "a.json"
    write_text(path, "old")

    def write_half() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_tensors_round_trip_with_equal_bytes_in_any_order(tmp_path):
    tensors = {"b": mx.arange(6).reshape(2, 3), "a": mx.array([1.5, -2.0], dtype=mx.bfloat16)}
    save_tensors(tmp_path / "1.safetensors", tensors, {"prompt": 'ü "quoted"\n', "n": 3})
    reverse = dict(reversed(tensors.items()))
    save_tensors(tmp_path / "2.safetensors", reverse, {"prompt": 'ü "quoted"\n', "n": 3})
    first, second = (tmp_path / f"{n}.safetensors" for n in "12")
    assert first.read_bytes() == second.read_bytes()
    loaded = load_tensors(first)
    assert all(mx.array_equal(loaded[name], tensors[name]) for name in tensors)
    assert loaded["a"].dtype == mx.bfloat16
    assert load_metadata(first) == {"format": "mlx", "prompt": 'ü "quoted"\n', "n": "3"}


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_truncation_is_noticed_wherever_it_happens(tmp_path, keep):
    path = tmp_path / "t.safetensors"
    save_tensors(path, {"a": mx.zeros((100,))})
    data = path.read_bytes()
    path.write_bytes(data[:keep])
    with pytest.raises(UserError, match=r"t\.safetensors"):
        load_tensors(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="There is no file"):
        check_safetensors(tmp_path / "nothing.safetensors")


def test_json_knows_its_format_and_version(tmp_path):
    path = tmp_path / "c.json"
    write_json(path, "ditquant.thing", {"x": 1})
    assert read_json(path, "ditquant.thing")["x"] == 1
    with pytest.raises(UserError, match=r"'ditquant\.other' is expected"):
        read_json(path, "ditquant.other")
    with pytest.raises(UserError, match="version 1"):
        read_json(path, "ditquant.thing", version=2)
    path.write_text(json.dumps([1]))
    with pytest.raises(UserError):
        read_json(path, "ditquant.thing")
    path.write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        read_json(path, "ditquant.thing")
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, "ditquant.thing", {"x": float("nan")})


WRITE = """
import sys
sys.path.insert(0, {scripts!r})
from ditquant.artifacts import save_tensors, write_text
from ditquant.backend import mx
from ditquant.errors import UserError
try:
    {statement}
except UserError as error:
    print(error)
    sys.exit(7)
"""


@pytest.mark.parametrize(
    "statement",
    [
        "save_tensors({path!r}, {{'a': mx.zeros((1_000_000,))}})",
        "write_text({path!r}, 'x' * 4_000_000)",
    ],
)
def test_a_full_disk_is_one_message_and_keeps_what_was_there(tmp_path, statement):
    """A limit on the size of files stands in for the disk: the write fails in its middle."""
    path = tmp_path / "big.safetensors"
    path.write_text("what was computed before")
    program = WRITE.format(scripts=str(SCRIPTS), statement=statement.format(path=str(path)))
    limit = 200_000

    def small_files() -> None:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails instead of the process
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, preexec_fn=small_files
    )
    assert done.returncode == 7, done.stderr
    assert "disk is full" in done.stdout
    assert str(path) in done.stdout
    assert path.read_text() == "what was computed before"
    assert os.listdir(tmp_path) == ["big.safetensors"]
