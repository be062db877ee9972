"""What a report says first: the few numbers that answer how small, how close and at what price."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from ..evaluation.table import error_ratio
from ..planning.recipes import Recipe
from ..planning.variants import Variant
from ..readable import fmt
from .report_data import Size
from .what_was_run import Section


@dataclass(frozen=True)
class Card:
    """A number, what it is, and what to know of it."""

    label: str
    value: str
    detail: str


def _between(low: float, high: float, how: str) -> str:
    return f"95 % interval {fmt(low, how)} to {fmt(high, how)}"


def headline_cards(
    recipe: str, rows: Mapping[str, Section], documents: Mapping[str, Section]
) -> list[Card]:
    """The numbers that answer: how small, how close, what learning and activations change.

    Args:
        recipe: that the page is about.
        rows, documents: of the evaluation's table and its files, by variant.
    """
    weights, a8 = f"{recipe}-weights", f"{recipe}-a8"
    cards = []
    if weights in rows and "full" in rows:
        small, large = rows[weights]["model_bytes"], rows["full"]["model_bytes"]
        detail = f"{fmt(small, 'bytes')} instead of {fmt(large, 'bytes')} in float16"
        cards.append(Card("Size of the MM-DiT", f"{large / small:.1f} × smaller", detail))
    for name, label in ((weights, "Pictures, weights quantized"), (a8, "Pictures, W4A8 simulated")):
        if name in rows:
            row = rows[name]
            detail = "median PSNR against full precision; " + _between(
                row["psnr_median_low"], row["psnr_median_high"], "1"
            )
            cards.append(Card(label, fmt(row["psnr_median"], "db"), detail))
    pairs = [(a8, weights, "Error of A8 against weights alone")]
    baseline = rows[weights]["baseline"] if weights in rows else None
    if baseline:
        label = f"Error against {Variant.parse(baseline).recipe}"
        pairs.insert(0, (weights, baseline, label))
    for name, against, label in pairs:
        if name in documents and against in documents:
            ratio, low, high = error_ratio(documents[name], documents[against])
            interval = _between(low, high, "2")
            detail = f"median latent error of {name} divided by that of {against}; {interval}"
            cards.append(Card(label, fmt(ratio, "times"), detail))
    best = a8 if a8 in rows else weights
    if best in rows and rows[best]["judge_accuracy"] is not None:
        detail = f"of the pictures by {best} satisfy the judge; at full precision " + fmt(
            rows["full"]["judge_accuracy"], "percent"
        )
        cards.append(
            Card("Captions drawn right", fmt(rows[best]["judge_accuracy"], "percent"), detail)
        )
    return cards


def lede(
    name: str, recipe: Recipe, kinds: Collection[str], bits: int | None, sizes: Iterable[Size]
) -> str:
    """One or two sentences on what was done to what.

    Args:
        name, recipe: that the page is about.
        kinds: of its variants that are shown: "weights", "a8", ...
        bits: of its single-tier activations; None: there are none.
        sizes: of the checkpoints.
    """
    one = recipe.grid == "channel"
    grid = "one scale for each output channel" if one else f"groups of {recipe.group_size}"
    text = (
        f"The linears of every transformer block hold {recipe.bits}-bit weights "
        f"({grid}), chosen by {recipe.rounding}"
    )
    if bits and {"a8", "multitier"} & set(kinds):
        text += f", and their inputs are rounded to {bits} bits"
    others = recipe.others
    if others and others.quantize != "blocks":
        which = "adaLN" if others.quantize == "blocks+adaln" else "all other linears"
        text += f"; {which} hold {others.other_bits}-bit weights"
    text += "; everything else is full precision."
    if any(size.name == name and (size.rest or 0) > (size.quantized or 0) for size in sizes):
        text += " Most of the bytes that are left are layers that it does not touch."
    return text
