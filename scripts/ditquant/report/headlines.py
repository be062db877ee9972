"""The numbers at the top of the report: how small, how close, and at what price."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..evaluation.table import error_ratio
from ..planning.variants import Variant
from ..readable import fmt
from .what_was_run import Section


def _card(label: str, value: str, detail: str) -> Section:
    return {"label": label, "value": value, "detail": detail}


def _between(low: float, high: float, how: str) -> str:
    return f"95 % interval {fmt(low, how)} to {fmt(high, how)}"


def headline_cards(
    recipe: str, rows: Mapping[str, Section], documents: Mapping[str, Section]
) -> list[Section]:
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
        cards.append(_card("Size of the MM-DiT", f"{large / small:.1f} × smaller", detail))
    for name, label in ((weights, "Pictures, weights quantized"), (a8, "Pictures, W4A8 simulated")):
        if name in rows:
            row = rows[name]
            detail = "median PSNR against full precision; " + _between(
                row["psnr_median_low"], row["psnr_median_high"], "1"
            )
            cards.append(_card(label, fmt(row["psnr_median"], "db"), detail))
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
            cards.append(_card(label, fmt(ratio, "times"), detail))
    best = a8 if a8 in rows else weights
    if best in rows and rows[best]["judge_accuracy"] is not None:
        detail = f"of the pictures by {best} satisfy the judge; at full precision " + fmt(
            rows["full"]["judge_accuracy"], "percent"
        )
        cards.append(
            _card("Captions drawn right", fmt(rows[best]["judge_accuracy"], "percent"), detail)
        )
    return cards


def lede(
    recipe: str,
    options: Section,
    kinds: Collection[str],
    bits: int | None,
    sizes: Sequence[Section],
) -> str:
    """One or two sentences on what was done to what.

    Args:
        recipe, options: that the page is about.
        kinds: of its variants that are shown: "weights", "a8", ...
        bits: of its single-tier activations; None: there are none.
        sizes: of the checkpoints.
    """
    text = (
        f"The linears of every transformer block hold {options['bits']}-bit weights "
        f"({grid_text(options)}), chosen by {options['rounding']}"
    )
    if bits and {"a8", "multitier"} & set(kinds):
        text += f", and their inputs are rounded to {bits} bits"
    others = options.get("quantize", "blocks")
    if others != "blocks":
        which = "adaLN" if others == "blocks+adaln" else "all other linears"
        text += f"; {which} hold {options['other_bits']}-bit weights"
    text += "; everything else is full precision."
    own = [size for size in sizes if size["name"] == recipe]
    if own and own[0]["rest"] > own[0]["quantized"]:
        text += " Most of the bytes that are left are layers that it does not touch."
    return text


def grid_text(options: Mapping[str, Any]) -> str:
    """How the weights share scales: "groups of 64" or "one scale for each output channel"."""
    if options["grid"] == "channel":
        return "one scale for each output channel"
    return f"groups of {options['group_size']}"
