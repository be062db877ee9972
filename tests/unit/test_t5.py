"""T5 through DiffusionKit's encoder and loader: each prompt is read as if it were alone."""

from __future__ import annotations

import importlib
import logging
import weakref

import numpy as np
import pytest

from ditquant.backend import import_diffusionkit, mx
from ditquant.errors import UserError
from ditquant.models import text
from ditquant.models.load import load_t5
from ditquant.models.spec import read_spec
from ditquant.models.t5 import REPOSITORY, T5Tokenizer, read_config
from ditquant.models.text import encode_texts
from support.models import parameters, small_sd3, snapshot_of, write_sd3
from support.small_tables import SD3
from support.t5 import build_t5, write_t5

PROMPTS = ["a small red star on a navy background", "a large blue ring", "", "star " * 40]
LENGTH = 20


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd3")
    checkpoint = write_sd3(folder / "checkpoint", folder / "hub")
    write_t5(folder / "hub", seed=3)
    return checkpoint, folder / "hub"


@pytest.fixture
def sd3(files, monkeypatch):
    """SD3-medium with small encoders in the hub's cache, T5's among them."""
    checkpoint, hub = files
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    kit = import_diffusionkit()
    monkeypatch.setitem(kit.T5_MAX_LENGTH, SD3, LENGTH)
    with small_sd3() as model_io:
        download = model_io.hf_hub_download
        monkeypatch.setattr(
            model_io, "hf_hub_download", lambda *a, **k: download(*a, cache_dir=str(hub), **k)
        )
        yield read_spec("sd3-medium", str(checkpoint))


def config_path(files):
    return snapshot_of(files[1], REPOSITORY) / "config.json"


def test_the_published_names_give_the_encoder_back(sd3, files):
    expected = parameters(build_t5(config_path(files), seed=3))
    loaded = parameters(load_t5(sd3, mx.float32)[0])
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert mx.array_equal(loaded[name], tensor.astype(mx.float16).astype(mx.float32)), name


def test_prompts_together_are_each_prompt_alone(sd3):
    together, _ = encode_texts(sd3, PROMPTS, mx.float32, use_t5=True)
    assert together.shape == (len(PROMPTS), 24 + LENGTH, 4096)
    for row, prompt in enumerate(PROMPTS):
        alone, _ = encode_texts(sd3, [prompt], mx.float32, use_t5=True)
        assert mx.array_equal(together[row, 24:], alone[0, 24:]), prompt
        assert mx.isfinite(alone).all()
    second = np.array(together[:, 24:]).reshape(len(PROMPTS), -1)
    distances = np.linalg.norm(second[:, None] - second[None], axis=-1)
    # Prompts differ, and what has passed through the layers is not the embedding alone.
    assert (distances[~np.eye(len(PROMPTS), dtype=bool)] > 1).all()


def test_rows_of_one_batch_do_not_see_each_other(sd3):
    encoder, tokenizer = load_t5(sd3, mx.float32)
    ids = [tokenizer.tokenize(prompt) for prompt in PROMPTS]
    tokens = mx.array([row + [0] * (LENGTH - len(row)) for row in ids])
    batch = encoder(tokens)
    again = encoder(tokens)
    assert mx.array_equal(batch, again)
    for row in range(len(PROMPTS)):
        # Products of another height: sums of 4096 float32 terms of unit size.
        assert mx.allclose(batch[row], encoder(tokens[row : row + 1])[0], rtol=1e-4, atol=1e-4)


def numpy_t5(parameters, tokens):
    """T5's encoder as Raffel et al. 2020 (arXiv 1910.10683) and its version 1.1 define it."""
    weights = {name: np.array(tensor, dtype=np.float64) for name, tensor in parameters.items()}

    def norm(x, name):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weights[f"{name}.weight"]

    def bucket(distance):
        size, half = abs(distance), 16 if distance > 0 else 0
        if size < 8:
            return half + size
        return half + min(15, 8 + int(np.log(size / 8) / np.log(128 / 8) * 8 + 1e-9))

    count = len(tokens)
    table = weights["encoder.relative_attention_bias.embeddings.weight"]
    buckets = [[bucket(key - query) for key in range(count)] for query in range(count)]
    bias = table[np.array(buckets)].transpose(2, 0, 1)
    x = weights["wte.weight"][tokens]
    for layer in range(2):
        path = f"encoder.layers.{layer}"
        y = norm(x, f"{path}.ln1")
        q, k, v = (
            (y @ weights[f"{path}.attention.{part}_proj.weight"].T)
            .reshape(count, 4, 8)
            .transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        scores = np.exp(q @ k.transpose(0, 2, 1) + bias)
        mixed = (scores / scores.sum(-1, keepdims=True)) @ v
        mixed = mixed.transpose(1, 0, 2).reshape(count, -1)
        x = x + mixed @ weights[f"{path}.attention.out_proj.weight"].T
        y = norm(x, f"{path}.ln2")
        gate = mx.array(y @ weights[f"{path}.dense.wi_0.weight"].T, dtype=mx.float32)
        gate = np.array(gate * (1 + mx.erf(gate / np.sqrt(2))) / 2, dtype=np.float64)
        wide = gate * (y @ weights[f"{path}.dense.wi_1.weight"].T)
        x = x + wide @ weights[f"{path}.dense.wo.weight"].T
    return norm(x, "encoder.ln")


def test_the_encoder_computes_t5(files):
    encoder = build_t5(config_path(files), seed=5)
    # Far enough apart for every bucket of distances.
    tokens = np.random.default_rng(0).integers(0, 300, 150)
    expected = numpy_t5(parameters(encoder), tokens)
    # Float32 through two layers of sums over 4096 terms, whose outputs are of unit size.
    assert np.allclose(np.array(encoder(mx.array(tokens)[None]))[0], expected, rtol=0, atol=1e-4)


def test_encoders_are_gone_before_the_next_is_loaded(sd3, monkeypatch):
    alive: list[weakref.ref] = []
    seen = []

    def watched(load):
        def load_and_watch(*arguments):
            seen.append([reference() is not None for reference in alive])
            model, tokenizer = load(*arguments)
            alive.append(weakref.ref(model))
            return model, tokenizer

        return load_and_watch

    for name in ("load_text_encoder", "load_t5"):
        monkeypatch.setattr(text, name, watched(getattr(text, name)))
    encode_texts(sd3, PROMPTS[:1], mx.float32, use_t5=True)
    assert seen == [[], [False], [False, False]]
    assert [reference() for reference in alive] == [None] * 3


@pytest.fixture
def tokenizer(files):
    return T5Tokenizer(snapshot_of(files[1], REPOSITORY) / "spiece.model", LENGTH)


def test_a_text_is_its_pieces_and_the_end(tokenizer):
    assert tokenizer.tokenize("") == [1]
    ids = tokenizer.tokenize("a red star")
    assert ids[-1] == 1
    assert ids.count(1) == 1
    assert tokenizer.tokenize("  a \n red\tstar ") == ids
    assert tokenizer.tokenize("a red star </s>").count(1) == 1


def test_a_long_text_is_cut_with_a_message(tokenizer, caplog):
    with caplog.at_level(logging.WARNING, logger="ditquant"):
        logging.getLogger("ditquant").propagate = True
        ids = tokenizer.tokenize("star " * 100)
    assert len(ids) == LENGTH
    assert ids[-1] == 1
    assert "T5 reads the first 19" in caplog.text


def test_a_damaged_tokenizer_or_configuration_is_named(tmp_path):
    damaged = tmp_path / "spiece.model"
    damaged.write_bytes(b"\x0a\x0e\x0a\x05nothing")
    with pytest.raises(UserError, match=r"spiece\.model is no SentencePiece model"):
        T5Tokenizer(damaged, LENGTH)
    damaged = tmp_path / "config.json"
    for content in ('{"d_model": ', "[1]", '{"vocab_size": 300}'):
        damaged.write_text(content)
        with pytest.raises(UserError, match=r"config\.json is damaged"):
            read_config(damaged)


def test_an_incomplete_encoder_is_named(sd3, files):
    weights = snapshot_of(files[1], "argmaxinc/stable-diffusion") / "t5" / "t5xxl.safetensors"
    before = weights.read_bytes()
    tensors = {name: mx.array(value) for name, value in mx.load(str(weights)).items()}
    mx.eval(tensors)
    try:
        name = "encoder.block.1.layer.1.DenseReluDense.wo.weight"
        kept = {key: value for key, value in tensors.items() if key != name}
        mx.save_safetensors(str(weights), kept)
        with pytest.raises(UserError, match=r"t5xxl\.safetensors is no text encoder.*dense\.wo"):
            load_t5(sd3, mx.float32)
    finally:
        weights.write_bytes(before)
