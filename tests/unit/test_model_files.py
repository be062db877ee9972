"""Damaged files of a model are named before anything is read from them."""

from __future__ import annotations

import json
import re
import shutil
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditquant.backend import mx
from ditquant.errors import UserError
from ditquant.models.files import check_local_files, check_tokenizer, read_clip_config, read_header
from ditquant.models.load import load_mmdit, load_text_encoder
from ditquant.models.spec import read_spec
from support.models import write_folder
from support.safetensors import write_raw

A = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
B = {"dtype": "F16", "shape": [4], "data_offsets": [24, 32]}
SOUND = {"__metadata__": {"format": "pt"}, "a": A, "b": B}


def header_of(entries) -> bytes:
    return json.dumps(entries).encode()


def test_a_sound_file_gives_types_shapes_and_places(tmp_path):
    # Spaces behind the header align the data; the order of entries is free.
    header = header_of({"b": B, "a": A}) + b"   "
    found = read_header(write_raw(tmp_path / "x.safetensors", header, bytes(32)))
    assert {name: (one.dtype, one.shape, one.end - one.begin) for name, one in found.items()} == {
        "a": ("F32", (2, 3), 24),
        "b": ("F16", (4,), 8),
    }
    assert found["a"].begin == 8 + len(header)


def changed(name, **values):
    return {**SOUND, name: {**SOUND[name], **values}}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (changed("b", dtype="F8_E4M3FNUZ"), "b has dtype 'F8_E4M3FNUZ'"),
        (changed("b", dtype=16), "b has dtype 16"),
        (changed("b", dtype=["F16"]), "b has dtype ['F16']"),
        (changed("b", shape=[5]), "b has 8 bytes, and its shape [5] is 10 of them"),
        (changed("b", shape=[-4]), "b has shape [-4]"),
        (changed("b", shape=[4.0]), "b has shape [4.0]"),
        (changed("b", shape=4), "b has shape 4"),
        (changed("b", data_offsets=[16, 24]), "b overlaps a"),
        (changed("b", data_offsets=[26, 34]), "b leaves a gap behind a"),
        (changed("a", data_offsets=[8, 32]), "a leaves a gap behind its header"),
        (changed("b", data_offsets=[32, 24]), "b has offsets 32 to 24"),
        (changed("b", data_offsets=[-8, 0]), "b has offsets -8 to 0"),
        (changed("b", data_offsets=[24]), "its entry 'b' has no dtype, shape and data_offsets"),
        ({**SOUND, "b": None}, "its entry 'b' has no dtype"),
        ({**SOUND, "b": {"dtype": "F16"}}, "its entry 'b' has no dtype"),
        ({"a": A}, "8 bytes too many behind a"),
        (changed("b", shape=[2**62], data_offsets=[24, 24 + 2**63]), "truncated, "),
    ],
)
def test_a_wrong_entry_is_named(tmp_path, entries, message):
    path = write_raw(tmp_path / "x.safetensors", header_of(entries), bytes(32))
    with pytest.raises(UserError, match=rf"x\.safetensors is damaged: {re.escape(message)}"):
        read_header(path)


SOUND_HEADER = header_of(SOUND)


@pytest.mark.parametrize(
    ("header", "data", "length", "message"),
    [
        (SOUND_HEADER, bytes(31), None, "is damaged: truncated, "),
        (SOUND_HEADER, bytes(33), None, "is damaged: 1 bytes too many behind b"),
        (SOUND_HEADER, b"", 2**63 - 1, "is truncated or no safetensors file"),
        (SOUND_HEADER, bytes(32), 2**40, "is truncated or no safetensors file"),
        (SOUND_HEADER, bytes(32), len(SOUND_HEADER) - 5, "is no safetensors file"),
        (SOUND_HEADER, bytes(32), len(SOUND_HEADER) + 5, "is no safetensors file"),
        (b"[1, 2]", b"", None, "is no safetensors file (its header is no JSON object)"),
        (b"[" * 100_000, b"", None, "is no safetensors file"),
        (SOUND_HEADER.decode().encode("utf-16"), bytes(32), None, "is no safetensors file"),
        (SOUND_HEADER.replace(b'"b"', b'"\xff"'), bytes(32), None, "is no safetensors file"),
        (SOUND_HEADER.replace(b'"b"', b'"a"'), bytes(32), None, "('a' appears twice)"),
    ],
)
def test_a_wrong_header_or_length_is_told(tmp_path, header, data, length, message):
    path = write_raw(tmp_path / "x.safetensors", header, data, length)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        read_header(path)
    assert "x.safetensors" in str(error.value)
    assert "Download" in str(error.value)


def test_short_empty_and_missing_files(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(UserError, match="There is no file"):
        read_header(path)
    for content in (b"", b"1234567", b"<html>restricted</html>"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="no safetensors file"):
            read_header(path)


@given(st.data())
def test_no_bit_flip_of_a_header_ends_in_another_error(tmp_path_factory, data):
    """It is told, or it changed a name or the metadata, which no header can tell."""
    path = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    content = bytearray(struct.pack("<Q", len(SOUND_HEADER)) + SOUND_HEADER + bytes(32))
    place = data.draw(st.integers(0, 8 + len(SOUND_HEADER) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        found = read_header(path)
    except UserError:
        return
    assert sorted((one.dtype, one.shape) for one in found.values()) in (
        [("F16", (4,)), ("F32", (2, 3))],
        # Types of the same width.
        [("BF16", (4,)), ("F32", (2, 3))], [("F16", (4,)), ("I32", (2, 3))],
        [("F16", (4,)), ("U32", (2, 3))], [("F32", (2, 3)), ("I16", (4,))],
        [("F32", (2, 3)), ("U16", (4,))],
    )  # fmt: skip


def test_the_hubs_files_are_told_to_be_deleted_where_they_lie(tmp_path):
    """A link in the cache would only be made again."""
    blob = tmp_path / "blobs" / "0a1b"
    blob.parent.mkdir()
    blob.write_bytes(b"half")
    link = tmp_path / "snapshots" / "0" / "model.safetensors"
    link.parent.mkdir(parents=True)
    link.symlink_to(blob)
    with pytest.raises(UserError, match=rf"model\.safetensors.*Delete {blob}"):
        read_header(link)


# ------------------------------------------------------------------------------ text encoders


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def folder(model, tmp_path) -> Path:
    return shutil.copytree(model, tmp_path / "tiny")


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def without_last_line(path: Path) -> None:
    path.write_text("\n".join(path.read_text("utf-8").splitlines()[:-1]) + "\n", "utf-8")


def without_tokens(path: Path) -> None:
    ids = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(dict(list(ids.items())[:-1])), "utf-8")


def renumbered(path: Path) -> None:
    ids = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({token: number + (number > 9) for token, number in ids.items()}))


def latin(path: Path) -> None:
    path.write_text(path.read_text("utf-8"), "utf-16")


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def a_list(path: Path) -> None:
    path.write_text("[1, 2]")


DAMAGE = [
    ("clip_l/model.fp16.safetensors", cut),
    ("clip_l/model.fp16.safetensors", emptied),
    ("clip_l/config.json", cut),
    ("clip_l/config.json", emptied),
    ("clip_l/config.json", a_list),
    ("clip_l/config.json", latin),
    ("tokenizer_l/vocab.json", cut),
    ("tokenizer_l/vocab.json", a_list),
    ("tokenizer_l/vocab.json", latin),
    ("tokenizer_l/vocab.json", without_tokens),
    ("tokenizer_l/vocab.json", renumbered),
    ("tokenizer_l/merges.txt", cut),
    ("tokenizer_l/merges.txt", emptied),
    ("tokenizer_l/merges.txt", without_last_line),
    ("tokenizer_l/merges.txt", latin),
    ("tiny.safetensors", cut),
]


@pytest.mark.parametrize(("file", "damage"), DAMAGE)
def test_a_damaged_file_of_a_model_folder_is_named(folder, file, damage):
    spec = read_spec("local", str(folder))
    check_local_files(spec)
    damage(folder / file)
    named = re.escape(Path(file).name)
    with pytest.raises(UserError, match=named):
        check_local_files(spec)
    text, is_text = spec.text.encoders[0], file != "tiny.safetensors"
    with pytest.raises(UserError, match=named):
        load_text_encoder(spec, text, mx.float32) if is_text else load_mmdit(spec, mx.float32)
    (folder / file).unlink()
    with pytest.raises(UserError, match=rf"There is no file .*{named}"):
        check_local_files(spec)


@pytest.mark.parametrize("key", ["hidden_size", "architectures", "projection_dim", "vocab_size"])
def test_a_missing_number_of_a_text_encoder_is_named(folder, key):
    path = folder / "clip_l" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in config.items() if name != key}))
    with pytest.raises(UserError, match=rf"config\.json: {key} is missing"):
        read_clip_config(path)


def test_a_vocabulary_beyond_its_encoders_table_is_told(folder):
    """The encoder would read beyond the table, whatever lies there."""
    tokenizer = folder / "tokenizer_l"
    size = len(json.loads((tokenizer / "vocab.json").read_text("utf-8")))
    check_tokenizer(tokenizer / "vocab.json", tokenizer / "merges.txt", size)
    with pytest.raises(UserError, match=rf"has {size} tokens, .* table {size - 1}"):
        check_tokenizer(tokenizer / "vocab.json", tokenizer / "merges.txt", size - 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mmdit": {"hidden_sise": 64}}, "mmdit.hidden_sise, which is no option"),
        ({"mmdit": {"hidden_size": 0}}, "mmdit.hidden_size: 0"),
        ({"mmdit": {"hidden_size": "64"}}, "mmdit.hidden_size: '64'"),
        ({"mmdit": {"depth_multimodal": True}}, "mmdit.depth_multimodal: True"),
        ({"mmdit": {"dtype": "float8"}}, "mmdit.dtype: 'float8'"),
        ({"mmdit": {"num_heads": 3}}, "mmdit: 3 heads do not divide hidden_size 64"),
        ({"mmdit": {"vae_latent_dim": 4}}, "mmdit.vae_latent_dim: 4 is not 16"),
        ({"vae": {"encoder": {"block_out_channels": [4, 4]}}}, "2 levels where there must be 4"),
        ({"vae": {"decoder": {"width": 4}}}, "vae.decoder.width, which is no option"),
        ({"vae": {"decoder": {"out_channels": 0}}}, "vae.decoder.out_channels: 0"),
        ({"image_size": [64]}, "lacks or garbles"),
        ({"image_size": "64x64"}, "lacks or garbles"),
        ({"image_size": [64.9, 64]}, "image_size: [64.9, 64]"),
        ({"sampler": {"shift": "three"}}, "lacks or garbles"),
        ({"sampler": {"shift": float("nan")}}, "sampler.shift: nan"),
        ({"sampler": {"shift": -1.0}}, "sampler.shift: -1.0"),
        ({"mmdit": {"depth_multimodal": 101}}, "mmdit.depth_multimodal: 101"),
        ({"version": 2}, "is not ditquant.model version 1"),
    ],
)
def test_a_wrong_configuration_of_a_model_folder_is_told(folder, change, message):
    path = folder / "config.json"
    config = json.loads(path.read_text())

    def merged(before, after):
        if not (isinstance(before, dict) and isinstance(after, dict)):
            return after
        return {**before, **{key: merged(before.get(key), after[key]) for key in after}}

    path.write_text(json.dumps(merged(config, change)))
    with pytest.raises(UserError, match=rf"config\.json.*{re.escape(message)}"):
        read_spec("local", str(folder))
