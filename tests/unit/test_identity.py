"""A checkpoint is known by its content, which is read once for each state of a large file."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ditquant.models import identity
from ditquant.models.spec import PUBLISHED, read_spec
from support.models import write_folder


@pytest.fixture
def checkpoint(tmp_path, monkeypatch) -> Path:
    """A file that counts as large, in a folder that we are in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(identity, "_NOTED_BYTES", 8)
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights of a model")
    return path


def identity_of(path: Path | None) -> str:
    return identity.checkpoint_identity(replace(PUBLISHED["sd3-medium"], checkpoint=path))


def test_a_copy_of_another_time_is_the_same_checkpoint(checkpoint, tmp_path):
    first = identity_of(checkpoint)
    copy = shutil.copyfile(checkpoint, tmp_path / "copy.safetensors")
    os.utime(copy, (1e9, 1e9))
    os.utime(checkpoint, (1e9, 1e9))
    assert identity_of(copy) == identity_of(checkpoint) == first


def test_other_content_is_another_checkpoint(checkpoint):
    first = identity_of(checkpoint)
    checkpoint.write_bytes(b"other weights, or ")
    os.utime(checkpoint, (1e9, 1e9))
    assert identity_of(checkpoint) != first


def test_a_large_file_is_read_once(checkpoint, monkeypatch):
    first = identity_of(checkpoint)
    monkeypatch.setattr(identity, "file_digest", None)
    assert identity_of(checkpoint) == first
    os.utime(checkpoint, (1e9, 1e9))
    with pytest.raises(TypeError):
        identity_of(checkpoint)


@pytest.mark.parametrize("broken", ["", "[]", "{", '{"KEY": 3}', '{"KEY": {"size": 18}}'])
def test_broken_notes_are_written_again(checkpoint, broken):
    first = identity_of(checkpoint)
    identity.NOTES.write_text(broken.replace("KEY", str(checkpoint)))
    assert identity_of(checkpoint) == first
    assert first in identity.NOTES.read_text()


def test_where_nothing_can_be_noted_the_file_is_read_again(checkpoint, monkeypatch):
    first = identity_of(checkpoint)
    shutil.rmtree(".snakemake")
    Path(".snakemake").write_text("no folder")
    assert identity_of(checkpoint) == first


def test_small_files_the_hub_and_nothing(checkpoint, monkeypatch):
    monkeypatch.setattr(identity, "_NOTED_BYTES", 1000)
    first = identity_of(checkpoint)
    assert not Path(".snakemake").exists()
    checkpoint.write_bytes(b"other")
    assert identity_of(checkpoint) != first
    assert identity_of(None) == PUBLISHED["sd3-medium"].repository
    assert identity_of(checkpoint.with_name("absent")) == "absent"


@pytest.mark.parametrize(
    "name",
    ["clip_l/config.json", "clip_l/model.fp16.safetensors", "tokenizer_l/vocab.json",
     "tokenizer_l/merges.txt"],
)  # fmt: skip
def test_every_file_of_a_text_encoder_counts(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = read_spec("demo", str(write_folder(tmp_path / "model")))
    first = identity.text_identity(spec)
    assert identity.text_identity(spec) == first
    path = spec.folder / name
    path.write_bytes(path.read_bytes() + b" ")
    assert identity.text_identity(spec) != first
