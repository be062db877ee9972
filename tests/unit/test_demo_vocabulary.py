"""The byte-pair vocabulary, read through DiffusionKit's own tokenizer."""

from __future__ import annotations

import pytest

from demo_model import shapes, vocabulary
from demo_model.data import load_tokenizer
from ditquant.models.text import tokenize


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    vocabulary.write_vocabulary(folder, shapes.words())
    return load_tokenizer(folder, length=20)


def test_a_word_is_one_token(tokenizer):
    for word in shapes.words():
        ids = tokenizer.tokenize(word, prepend_bos=False, append_eos=False)
        assert ids == [tokenizer.vocab[word + vocabulary.END_OF_WORD]]


def test_the_longest_caption_fits_the_text_encoder(tokenizer):
    text = "a large purple cross right of a small yellow square on a beige background"
    assert len(tokenizer.tokenize(text)) == len(text.split()) + 2 <= 20


def test_the_end_token_has_the_highest_id(tokenizer):
    assert tokenizer.eos_token == max(tokenizer.vocab.values())
    assert sorted(tokenizer.vocab.values()) == list(range(len(tokenizer.vocab)))


def test_the_byte_symbols_come_first_as_in_clip(tokenizer):
    tokens = sorted(tokenizer.vocab, key=tokenizer.vocab.__getitem__)
    assert tokens[:3] == ["!", '"', "#"]
    assert len(set(tokens[:256])) == 256
    assert tokens[256:512] == [token + vocabulary.END_OF_WORD for token in tokens[:256]]


@pytest.mark.parametrize("text", ["quixotic zebra!", "ein rotes Dreieck", "日本語 🙂", "42 naïve"])
def test_any_text_has_tokens(tokenizer, text):
    ids = tokenize(tokenizer, text)
    assert ids[0] == tokenizer.bos_token
    assert ids[-1] == tokenizer.eos_token
    assert len(ids) > 2


def test_the_merges_do_not_depend_on_the_order_of_the_words():
    words = shapes.words()
    assert vocabulary.train_merges(words) == vocabulary.train_merges(reversed(words))


def test_the_most_frequent_pair_is_merged_first():
    merges = vocabulary.train_merges(["abab", "ab", "cd"])
    assert merges[0] == ("a", "b</w>")  # twice; every other pair once
