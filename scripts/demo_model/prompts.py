"""The captions on which the demo is calibrated and evaluated.

Attributes are dealt from shuffled decks, so that every stretch of a list shows all shapes, colours,
sizes, backgrounds and relations about equally often, and already the first ten are a fair sample.
The evaluation captions are drawn first; calibration takes others, and training leaves them out.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

import numpy as np

from .shapes import BACKGROUNDS, COLORS, RELATIONS, SHAPES, SIZES, Caption, Item

EVALUATION_CAPTIONS = 256
CALIBRATION_CAPTIONS = 128
SEED = 2026


def _deck(values: Sequence[str], rng: np.random.Generator) -> Iterator[str]:
    """Deals every value once in random order, then shuffles again."""
    while True:
        yield from (values[i] for i in rng.permutation(len(values)))


def _deal(rng: np.random.Generator) -> Iterator[Caption]:
    sizes, colors = _deck(tuple(SIZES) * 2, rng), _deck(tuple(COLORS), rng)
    shapes, backgrounds = _deck(SHAPES, rng), _deck(tuple(BACKGROUNDS), rng)
    relations = _deck(RELATIONS, rng)
    counts = _deck(("one", "two", "two"), rng)  # a third of the captions has one shape
    while True:
        pair = next(counts) == "two"
        items = tuple(
            Item(next(sizes), next(colors), next(shapes)) for _ in range(2 if pair else 1)
        )
        yield Caption(items, next(relations) if pair else None, next(backgrounds))


def prompt_lists(seed: int = SEED) -> tuple[list[str], list[str]]:
    """(calibration, evaluation): 128 and 256 captions, none twice, none in both."""
    dealt = _deal(np.random.default_rng(seed))
    seen: dict[str, None] = {}
    while len(seen) < EVALUATION_CAPTIONS + CALIBRATION_CAPTIONS:
        seen[str(next(dealt))] = None
    captions = list(seen)
    return captions[EVALUATION_CAPTIONS:], captions[:EVALUATION_CAPTIONS]


def to_csv(captions: Sequence[str]) -> str:
    """The text of a prompt file: the header `prompt`, then one caption a line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["prompt"])
    writer.writerows([caption] for caption in captions)
    return text.getvalue()
