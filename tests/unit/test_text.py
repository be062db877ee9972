"""Prompts become tokens, whatever they hold."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import pytest

from demo_model.shapes import sample_caption
from ditquant.backend import mx
from ditquant.models.load import load_text_encoder
from ditquant.models.spec import read_spec
from ditquant.models.text import encode_texts, token_batch, tokenize

ROOT = Path(__file__).parents[2]
ODD = [
    'a "red" star, isn\'t it?',
    "two\nlines\tand a tab",
    "красная звезда 赤い星 🟥",
    "x" * 2000,
    "star " * 400,
    "",
]


@pytest.fixture(scope="module")
def demo():
    return read_spec("demo")


@pytest.fixture(scope="module")
def tokenizer(demo):
    return load_text_encoder(demo, demo.text.encoders[0], mx.float32)[1]


def test_plain_text_gives_diffusionkits_tokens(tokenizer):
    random.seed(0)
    texts = ["a small red star on a navy background", "hello world 12", "", "isn't  it?"]
    for text in texts:
        assert tokenize(tokenizer, text) == tokenizer.tokenize(text)


@pytest.mark.parametrize("text", ODD)
def test_any_text_has_tokens(tokenizer, text):
    tokens = tokenize(tokenizer, text)
    assert tokens[0] == tokenizer.bos_token
    assert tokens[-1] == tokenizer.eos_token
    assert tokens.count(tokenizer.eos_token) == 1
    assert len(tokens) <= tokenizer.max_length


def test_a_long_prompt_is_cut_with_a_message(tokenizer, caplog):
    with caplog.at_level(logging.WARNING, logger="ditquant"):
        logging.getLogger("ditquant").propagate = True
        tokens = tokenize(tokenizer, "star " * 400)
    assert len(tokens) == tokenizer.max_length
    assert "400 tokens" in caplog.text


def test_batches_are_padded_to_the_full_length(tokenizer):
    batch = token_batch(tokenizer, ["a star", ""])
    assert batch.shape == (2, tokenizer.max_length)
    assert (batch[:, -1] == tokenizer.eos_token).all()


def test_encodings_are_finite_and_tell_prompts_apart(demo):
    import numpy as np

    rng = np.random.default_rng(1)
    texts = [*ODD, str(sample_caption(rng)), str(sample_caption(rng))]
    conditioning, pooled = encode_texts(demo, texts, mx.float32)
    assert mx.isfinite(conditioning).all()
    assert len({tuple(row) for row in pooled.tolist()}) == len(texts)
