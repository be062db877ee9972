"""Prompts to conditioning, as DiffusionKit's `encode_text` does it, one encoder at a time.

Differences, both for prompts that DiffusionKit refuses with a KeyError: text is split into CLIP's
byte symbols before the byte-pair merges (as the original CLIP tokenizer does), so that any
language, quotes and emoji have tokens; and prompts longer than the context are cut with a message.
T5's encoder serves all prompts: `load.load_t5`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any

from ..backend import mx, nn
from ..finite import check_finite
from .load import load_t5, load_text_encoder
from .spec import ModelSpec

_LOG = logging.getLogger("ditquant")


@cache
def byte_symbols() -> dict[int, str]:
    """CLIP's printable character for each byte: itself where printable, else from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    symbols = {byte: chr(byte) for byte in printable}
    symbols.update({byte: chr(256 + index) for index, byte in enumerate(others)})
    return symbols


def tokenize(tokenizer: Any, text: str) -> list[int]:
    """Token ids of `text` with start and end tokens, cut to the tokenizer's `max_length`.

    For text that DiffusionKit's `Tokenizer.tokenize` accepts, the result is the same.
    """
    pieces = tokenizer.pat.findall(" ".join(text.lower().split()))
    symbols = byte_symbols()
    ids: list[int] = []
    for piece in pieces:
        word = "".join(symbols[byte] for byte in piece.encode("utf-8"))
        ids.extend(tokenizer.vocab[token] for token in tokenizer.bpe(word))
    longest = tokenizer.max_length - 2
    if len(ids) > longest:
        _LOG.warning(
            "A prompt has %d tokens, the text encoder reads the first %d: %.60s...",
            len(ids), longest, text,
        )  # fmt: skip
    return [tokenizer.bos_token, *ids[:longest], tokenizer.eos_token]


def token_batch(tokenizer: Any, texts: Sequence[str]) -> mx.array:
    """(len(texts), max_length) token ids; padded with the end token or with 0."""
    padding = tokenizer.eos_token if tokenizer.pad_with_eos else 0
    rows = [tokenize(tokenizer, text) for text in texts]
    return mx.array([row + [padding] * (tokenizer.max_length - len(row)) for row in rows])


def _check_conditioning(states: Sequence[mx.array], encoder: str, texts: Sequence[str]) -> None:
    """Evaluates and checks token states and, if there are two arrays, pooled ones."""
    names = ("the conditioning", "the pooled conditioning")
    prompts = " or ".join(repr(text[:60]) for text in texts)
    check_finite(
        dict(zip(names, states, strict=False)), f"by text encoder {encoder} of prompt {prompts}"
    )


def _encode_clip(
    model: nn.Module, tokenizer: Any, encoder: str, texts: Sequence[str], rows: int
) -> tuple[mx.array, mx.array]:
    hidden, pooled = [], []
    tokens = token_batch(tokenizer, texts)
    for start in range(0, len(tokens), rows):
        output = model(tokens[start : start + rows])
        states = output.hidden_states[-2], output.pooled_output
        _check_conditioning(states, encoder, texts[start : start + rows])
        hidden.append(states[0])
        pooled.append(states[1])
    return mx.concatenate(hidden), mx.concatenate(pooled)


def encode_texts(
    spec: ModelSpec, texts: Sequence[str], dtype: mx.Dtype, use_t5: bool = False
) -> tuple[mx.array, mx.array]:
    """Conditioning of several texts, each row independent of the others.

    Args:
        texts: prompts; the negative prompt is a text like the others ("" by default).
        dtype: of the encoders' weights and of the result.
        use_t5: encode the second token sequence with T5 (SD3); else it is zeros.

    Returns:
        conditioning (n, tokens, channels) and pooled (n, pooled channels).

    Raises:
        UserError: an encoder's output is NaN or infinite.
    """
    hidden_states, pooled_outputs = [], []
    for encoder in spec.text.encoders:
        model, tokenizer = load_text_encoder(spec, encoder, dtype)
        # Two rows at a time, as DiffusionKit encodes a prompt with its negative prompt.
        hidden, pooled = _encode_clip(model, tokenizer, encoder.name, texts, rows=2)
        hidden_states.append(hidden)
        pooled_outputs.append(pooled)
        del model
        mx.clear_cache()
    conditioning = mx.concatenate(hidden_states, axis=-1)
    missing = spec.text.channels - conditioning.shape[-1]
    if missing:
        zeros = mx.zeros((*conditioning.shape[:2], missing), dtype=conditioning.dtype)
        conditioning = mx.concatenate([conditioning, zeros], axis=-1)
    if spec.text.second_sequence == "t5":
        second = _encode_t5(spec, texts, dtype) if use_t5 else mx.zeros_like(conditioning)
        conditioning = mx.concatenate([conditioning, second], axis=1)
    return conditioning.astype(dtype), mx.concatenate(pooled_outputs, axis=-1).astype(dtype)


def _encode_t5(spec: ModelSpec, texts: Sequence[str], dtype: mx.Dtype) -> mx.array:
    """T5's hidden states (n, max_length, channels); prompts are padded with 0 in full."""
    encoder, tokenizer = load_t5(spec, dtype)
    states = []
    for text in texts:
        ids = tokenizer.tokenize(text)
        tokens = mx.array([ids + [0] * (tokenizer.max_length - len(ids))])
        states.append(encoder(tokens).astype(dtype))
        _check_conditioning([states[-1]], "t5", [text])
    del encoder
    mx.clear_cache()
    return mx.concatenate(states)
