"""T5's configuration and tokenizer, from its repository on the hub.

DiffusionKit takes both through `transformers`, whose tokenizer needs more packages still. The
tokenizer is a SentencePiece model (Kudo and Richardson 2018, arXiv 1808.06226): its own library
reads it, and T5 adds nothing but the end token.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from ..errors import UserError
from .files import advice

_LOG = logging.getLogger("ditquant")

REPOSITORY = "google/t5-v1_1-xxl"
CONFIG, TOKENS = "config.json", "spiece.model"
# Not in every config.json: T5's own number.
_DEFAULTS = {"relative_attention_max_distance": 128}
_READ = (
    "vocab_size", "d_model", "d_kv", "d_ff", "num_heads", "num_layers", "layer_norm_epsilon",
    "relative_attention_num_buckets", "feed_forward_proj",
)  # fmt: skip


def read_config(path: str | Path) -> SimpleNamespace:
    """What DiffusionKit asks of transformers' T5Config.

    Raises:
        UserError: no JSON object, or one that lacks a number; names the key.
    """
    path = Path(path)
    try:
        config = {**_DEFAULTS, **json.loads(path.read_text("utf-8"))}
        if missing := [key for key in _READ if key not in config]:
            raise ValueError(f"{missing[0]} is missing")
        return SimpleNamespace(**config)
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}). {advice(path)}") from error


def config_class(download: Callable[[str, str], str]) -> SimpleNamespace:
    """In the place of transformers' T5Config in DiffusionKit's loader."""
    return SimpleNamespace(from_pretrained=lambda name: read_config(download(name, CONFIG)))


class T5Tokenizer:
    """Token ids of a text, as T5 reads it: its pieces, and the end token.

    Args:
        path: the SentencePiece model.
        max_length: tokens that a text may have, the end token included.

    Raises:
        UserError: the file holds no such model.
    """

    def __init__(self, path: str | Path, max_length: int):
        from sentencepiece import SentencePieceProcessor

        try:
            self._pieces = SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            path = Path(path)
            raise UserError(f"{path} is no SentencePiece model. {advice(path)}") from error
        self.max_length = max_length

    def tokenize(self, text: str) -> list[int]:
        """At most `max_length` ids; what a text has more is cut off, with a message."""
        ids: list[int] = self._pieces.encode(text)
        longest = self.max_length - 1
        if len(ids) > longest:
            _LOG.warning(
                "A prompt has %d tokens, T5 reads the first %d: %.60s...", len(ids), longest, text
            )
        return [*ids[:longest], self._pieces.eos_id()]
