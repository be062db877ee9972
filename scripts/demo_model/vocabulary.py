"""A byte-pair vocabulary for the captions, in the file form of CLIP's tokenizer.

DiffusionKit's `Tokenizer` reads `vocab.json` and `merges.txt` as CLIP ships them. Byte-pair
encoding (Sennrich et al., arXiv 1508.07909) starts from single characters and merges the most
frequent adjacent pair, again and again. On the few words of the captions that goes on until every
word is one token, so a caption of n words is n + 2 tokens, begin and end included. CLIP's 256 byte
symbols come first, each also in its word-final form, so that other text is representable too.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from ditquant.models.text import byte_symbols

END_OF_WORD = "</w>"
BEGIN, END = "<|startoftext|>", "<|endoftext|>"

Pair = tuple[str, str]


def _merge(symbols: Sequence[str], pair: Pair) -> list[str]:
    merged: list[str] = []
    position = 0
    while position < len(symbols):
        if tuple(symbols[position : position + 2]) == pair:
            merged.append("".join(pair))
            position += 2
        else:
            merged.append(symbols[position])
            position += 1
    return merged


def train_merges(words: Iterable[str]) -> list[Pair]:
    """Byte-pair merges in rank order, after which every one of `words` is a single symbol.

    The most frequent pair goes first; of equally frequent ones the first in alphabetical order, so
    the result does not depend on the order of the words.
    """
    split = [[*word[:-1], word[-1] + END_OF_WORD] for word in sorted(set(words))]
    merges: list[Pair] = []
    while counts := Counter(pair for symbols in split for pair in pairwise(symbols)):
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        split = [_merge(symbols, best) for symbols in split]
    return merges


def build_vocabulary(merges: Sequence[Pair]) -> dict[str, int]:
    """Token to id, as CLIP numbers them: bytes, word-final bytes, merges, begin, end (highest).

    The text encoder finds the end of a caption as its highest id.
    """
    symbols = list(byte_symbols().values())
    tokens = [*symbols, *(symbol + END_OF_WORD for symbol in symbols)]
    tokens += dict.fromkeys("".join(pair) for pair in merges)
    tokens += [BEGIN, END]
    return {token: index for index, token in enumerate(tokens)}


def write_vocabulary(folder: str | Path, words: Iterable[str]) -> dict[str, int]:
    """Writes `vocab.json` and `merges.txt` into a folder; returns token to id."""
    merges = train_merges(words)
    vocabulary = build_vocabulary(merges)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    text = json.dumps(vocabulary, ensure_ascii=False, indent=0)
    (folder / "vocab.json").write_text(text + "\n", encoding="utf-8")
    return vocabulary
