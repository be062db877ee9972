"""Files are complete or absent, carry a seal, and say what is wrong with them."""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ditquant import files
from ditquant.artifacts import (
    load_metadata,
    load_tensors,
    read_file,
    read_json,
    save_tensors,
    write_file,
    write_json,
)
from ditquant.backend import mx
from ditquant.errors import UserError
from ditquant.files import atomic_path, remove, write_text
from ditquant.seals import VERSIONS, recorded_digest

SCRIPTS = Path(__file__).parents[2] / "scripts"
LATENTS, TIMING, PLOT = "ditquant.latents", "ditquant.timing", "ditquant.plot"


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


KILLED = """
import os, signal, sys
sys.path.insert(0, {scripts!r})
from ditquant.files import atomic_path
with atomic_path({path!r}) as temporary:
    temporary.write_bytes(b"half")
    print("writing", flush=True)
    if {waits}:
        sys.stdin.read()
    else:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def writer(path: Path, waits: bool) -> subprocess.Popen[str]:
    program = KILLED.format(scripts=str(SCRIPTS), path=str(path), waits=waits)
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def test_leftovers_of_killed_writes_are_removed_by_the_next(tmp_path):
    path = tmp_path / "mm00.json"
    (tmp_path / ".mm00.resume.1.partial.json").write_text("of another file")
    killed = writer(path, waits=False)
    assert killed.wait() == -signal.SIGKILL
    killed.communicate()
    assert len(os.listdir(tmp_path)) == 2
    alive = writer(path, waits=True)
    assert len(os.listdir(tmp_path)) == 2, "the killed one's is gone, the living one's is there"
    write_text(path, "whole")
    assert len(os.listdir(tmp_path)) == 3, "what is being written is left alone"
    alive.communicate()
    remove(path)
    assert os.listdir(tmp_path) == [".mm00.resume.1.partial.json"]


def test_file_and_folders_are_synced_around_the_rename(tmp_path, monkeypatch):
    """Where a power cut is simulated, `make faults` shows the same on a disk."""
    calls = []
    sync, replace = files._sync, os.replace
    monkeypatch.setattr(
        files, "_sync", lambda one: (calls.append(os.readlink(f"/proc/self/fd/{one}")), sync(one))
    )
    monkeypatch.setattr(os, "replace", lambda *two: (calls.append("rename"), replace(*two)))
    write_text(tmp_path / "new" / "folder" / "a.txt", "text")
    place = calls.index("rename")
    assert calls[place - 1].endswith(".partial.txt")
    folders = [tmp_path / "new" / "folder", tmp_path / "new", tmp_path]
    assert calls[place + 1 :][:3] == [str(folder) for folder in folders]


# ------------------------------------------------------------------------------------- tensors

ALL_DTYPES = [
    mx.bool_, mx.uint8, mx.int8, mx.uint16, mx.int16, mx.uint32, mx.int32, mx.uint64, mx.int64,
    mx.float16, mx.bfloat16, mx.float32,
]  # fmt: skip


def test_tensors_round_trip_with_equal_bytes_in_any_order(tmp_path):
    tensors = {str(dtype): mx.arange(5).astype(dtype) for dtype in ALL_DTYPES}
    tensors |= {
        "scalar": mx.array(2.5), "empty": mx.zeros((0, 3)),
        "strided": mx.arange(12).reshape(3, 4).T,
    }  # fmt: skip
    metadata = {"prompt": 'ü "quoted"\n "digest": "' + "1" * 32 + '"', "n": 3}
    save_tensors(tmp_path / "1.safetensors", tensors, LATENTS, metadata)
    reverse = dict(reversed(tensors.items()))
    save_tensors(tmp_path / "2.safetensors", reverse, LATENTS, dict(reversed(metadata.items())))
    first, second = (tmp_path / f"{n}.safetensors" for n in "12")
    assert first.read_bytes() == second.read_bytes()
    loaded = load_tensors(first, LATENTS)
    assert set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        assert mx.array_equal(loaded[name], tensor)
    assert load_metadata(first, LATENTS) == {
        "format": "mlx", "prompt": metadata["prompt"], "n": "3",
    }  # fmt: skip


def test_other_programs_read_the_layout(tmp_path):
    from safetensors.numpy import load_file

    path = tmp_path / "t.safetensors"
    save_tensors(path, {"a": mx.arange(3), "b": mx.zeros((2, 5), mx.float16)}, LATENTS)
    assert set(load_file(path)) == set(mx.load(str(path))) == {"a", "b"}
    np.testing.assert_array_equal(load_file(path)["a"], np.arange(3))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nothing_that_is_not_finite_is_written(tmp_path, bad):
    path = tmp_path / "t.safetensors"
    for dtype in (mx.float16, mx.bfloat16, mx.float32):
        tensors = {"fine": mx.zeros(3), "wrong": mx.array([0.0, bad]).astype(dtype)}
        with pytest.raises(UserError, match=r"t\.safetensors was not written.*in wrong\..*float32"):
            save_tensors(path, tensors, LATENTS)
    with pytest.raises(UserError, match=r"c\.json was not written: rows\.1\.x is not a finite"):
        write_json(tmp_path / "c.json", TIMING, {"rows": [{"x": 1.0}, {"x": bad}]})
    with pytest.raises(UserError, match=r"t\.safetensors was not written: learned\.a\.1 is not"):
        save_tensors(path, {"fine": mx.zeros(3)}, LATENTS, {"learned": {"a": [0.0, bad]}})
    assert not os.listdir(tmp_path)


# --------------------------------------------------------------------------------------- damage


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(buffer, format="PNG")
    return buffer.getvalue()


def gif() -> bytes:
    buffer = io.BytesIO()
    frames = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (0, 255)]
    frames[0].save(buffer, format="GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def write_tensors(path: Path) -> None:
    save_tensors(path, {"a": mx.arange(9), "b": mx.zeros((2, 3), mx.float16)}, LATENTS, {"n": 1})


def read_all(path: Path, kind: str) -> None:
    load_metadata(path, kind)
    dict(load_tensors(path, kind))


ARTIFACTS = {
    "t.safetensors": (write_tensors, read_all, LATENTS),
    "c.json": (lambda path: write_json(path, TIMING, {"x": [1, 2.5]}), read_json, TIMING),
    "p.png": (lambda path: write_file(path, png(), PLOT), read_file, PLOT),
    "p.gif": (lambda path: write_file(path, gif(), PLOT), read_file, PLOT),
    "p.svg": (lambda path: write_file(path, b"<svg></svg>\n", PLOT), read_file, PLOT),
    "p.html": (lambda path: write_file(path, b"<p>text</p>\n", PLOT), read_file, PLOT),
}
DAMAGED = r"{name}.*delete it and run the same command again"


@pytest.mark.parametrize("name", list(ARTIFACTS))
def test_every_flipped_bit_and_every_cut_is_told(tmp_path, name):
    path = tmp_path / name
    write, read, kind = ARTIFACTS[name]
    write(path)
    read(path, kind)
    whole = path.read_bytes()
    damage = [whole[:size] for size in range(len(whole))] + [whole + b"\0"]
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << (place % 8)
        damage.append(bytes(flipped))
    for data in damage:
        path.write_bytes(data)
        with pytest.raises(UserError, match=DAMAGED.format(name=name)):
            read(path, kind)
    path.write_bytes(whole)
    read(path, kind)


@pytest.mark.parametrize("name", list(ARTIFACTS))
def test_a_foreign_file_is_told(tmp_path, name, monkeypatch):
    write, read, kind = ARTIFACTS[name]
    path = tmp_path / "results" / "run" / "a" / name
    write(path)
    with pytest.raises(UserError, match=f"{name} holds {kind} where ditquant.clip_errors"):
        read(path, "ditquant.clip_errors")
    monkeypatch.setitem(VERSIONS, kind, 2)
    with pytest.raises(
        UserError, match=f"{name} is {kind} version 1, this release reads version 2"
    ):
        read(path, kind)
    monkeypatch.undo()
    exchanged = tmp_path / "results" / "run" / "b" / name
    exchanged.parent.mkdir()
    path.rename(exchanged)
    with pytest.raises(UserError, match=rf"b/{name} was written as a/{name}"):
        read(exchanged, kind)
    # Other runs and other folders may hold copies.
    for folder in ("results/other/a", "elsewhere"):
        copy = tmp_path / folder / name
        copy.parent.mkdir(parents=True)
        copy.write_bytes(exchanged.read_bytes())
        read(copy, kind)


@pytest.mark.parametrize("name", list(ARTIFACTS))
def test_the_recorded_digest_follows_the_content(tmp_path, name):
    write, _, _ = ARTIFACTS[name]
    path = tmp_path / name
    write(path)
    first = recorded_digest(path)
    write(path)
    assert recorded_digest(path) == first
    assert len(first) == 32
    path.write_bytes(b"")
    with pytest.raises(UserError, match=name):
        recorded_digest(path)


def test_the_recorded_digest_of_tensors_covers_their_values(tmp_path):
    path, digests = tmp_path / "t.safetensors", set()
    for value in (0.0, 1.0):
        save_tensors(path, {"a": mx.array([value])}, LATENTS)
        digests.add(recorded_digest(path))
    assert len(digests) == 2


def test_only_what_is_taken_is_read(tmp_path):
    path = tmp_path / "t.safetensors"
    write_tensors(path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # in the last tensor, "b", of the smaller items
    path.write_bytes(data)
    tensors = load_tensors(path, LATENTS)
    assert tensors["a"].size == 9
    with pytest.raises(UserError, match="the digest of b"):
        tensors["b"]


def test_pictures_with_a_seal_are_pictures(tmp_path):
    for name, plain in (("p.png", png()), ("p.gif", gif())):
        ARTIFACTS[name][0](tmp_path / name)
        with Image.open(tmp_path / name) as sealed, Image.open(io.BytesIO(plain)) as image:
            sealed.load()
            np.testing.assert_array_equal(np.asarray(sealed), np.asarray(image))


def test_missing_file_is_named(tmp_path):
    for name, (_, read, kind) in ARTIFACTS.items():
        with pytest.raises(UserError, match=f"There is no file .*{name}"):
            read(tmp_path / name, kind)


def test_a_json_file_of_another_program_is_told(tmp_path):
    path = tmp_path / "c.json"
    for text in (json.dumps([1]), "{", '{"format": "ditquant.timing", "version": 1}'):
        path.write_text(text)
        with pytest.raises(UserError, match=DAMAGED.format(name="c.json")):
            read_json(path, TIMING)


def test_an_error_of_the_disk_is_not_called_a_full_disk(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="Input/output"):
        write_text(tmp_path / "a.txt", "text")


WRITE = """
import sys
sys.path.insert(0, {scripts!r})
from ditquant.artifacts import save_tensors
from ditquant.files import write_text
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
        "save_tensors({path!r}, {{'a': mx.zeros((1_000_000,))}}, 'ditquant.latents')",
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
