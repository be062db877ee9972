"""Plots of the learning of each block, and of the tuning of the whole network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..weights.divergence import kept_text
from .charts import PALETTE, log_axis, styled

_COLUMNS = 6
_PANEL_INCHES = (2.15, 1.75)
_BLOCKS_TITLE = (
    "block error while learning (blue: batches, dotted: hard at the end, dashed orange: rtn, "
    "training rows)\nand share of roundings decided in % (green)"
)
_TUNING_TITLE = "velocity error while tuning (blue: batches, other: held-out rows)"


def _draw_learning(axes: Axes, document: Mapping[str, Any]) -> list[float]:
    """The error of the batches; returns the iterations."""
    iterations = [point["iteration"] for point in document["history"]]
    errors = [point["error"] for point in document["history"]]
    axes.plot(iterations, errors, color=PALETTE[0], lw=1.3)
    return iterations


def _finish(axes: Axes, title: str, document: Mapping[str, Any], is_result_kept: bool) -> None:
    log_axis(axes, "y")
    kept = "" if is_result_kept else f", kept {kept_text(document)}"
    axes.set_title(title + kept, fontsize=8)
    axes.tick_params(labelsize=7)


def _draw_block(axes: Axes, document: Mapping[str, Any]) -> Axes:
    """One block on two axes; returns the second, for the share."""
    shares, title, errors = axes.twinx(), document["block"], document["hard_error"]
    if not document["history"] and not document["diverged"]:
        axes.set_title(f"{title}: left alone", fontsize=8)
        return shares
    iterations = _draw_learning(axes, document)
    axes.axhline(errors["rtn"]["train"], color=PALETTE[1], lw=1.0, ls=(0, (4, 2)))
    if "result" in errors:
        axes.axhline(errors["result"]["train"], color=PALETTE[0], lw=1.0, ls=(0, (1, 1.2)))
        ratio = errors["result"]["held_out"] / errors["rtn"]["held_out"]
        title += f": {ratio:.2f} × rtn held out"
    _finish(axes, title, document, document["accepted"])
    shares.spines["right"].set_visible(True)
    percent = [100 * point["binary_share"] for point in document["history"]]
    shares.plot(iterations, percent, color=PALETTE[2], lw=1.0)
    shares.set_ylim(0, 101)
    shares.tick_params(labelsize=7, colors=PALETTE[2])
    return shares


def _draw_tuning(axes: Axes, document: Mapping[str, Any]) -> None:
    """The velocity error of the whole network while its grids are tuned."""
    errors, title = document["error"], "tuning"
    _draw_learning(axes, document)
    judged = [point for point in document["history"] if "held_out" in point]
    axes.plot(
        [0, *(point["iteration"] for point in judged)],
        [errors["start"], *(point["held_out"] for point in judged)],
        color=PALETTE[3], lw=1.3, marker="o", ms=2.5,
    )  # fmt: skip
    if "tuned" in errors:
        title += f": {errors['tuned'] / errors['start']:.2f} × start"
    _finish(axes, title, document, document["kept"] == "tuned")


@styled()
def draw_histories(
    recipe: str,
    documents: Sequence[Mapping[str, Any]],
    tuning: Mapping[str, Any] | None = None,
) -> Figure:
    """One panel a block, in the order given, and one for the tuning.

    Args:
        documents: block results ("ditquant.block_result") whose rounding was learned; may be empty
            if there is a `tuning`.
        tuning: of the whole network ("ditquant.tuning").
    """
    count = len(documents) + (tuning is not None)
    columns = min(_COLUMNS, count)
    rows = math.ceil(count / columns)
    width, height = _PANEL_INCHES
    chart = Figure(figsize=(columns * width + 0.6, rows * height + 0.9), layout="constrained")
    panels = chart.subplots(rows, columns, squeeze=False).ravel()
    for index, (axes, document) in enumerate(zip(panels, documents, strict=False)):
        shares = _draw_block(axes, document)
        if index % columns != columns - 1 and index + 1 < len(documents):
            shares.set_yticklabels([])
    if tuning is not None:
        _draw_tuning(panels[len(documents)], tuning)
    for axes in panels[count:]:
        axes.set_visible(False)
    lines = [_BLOCKS_TITLE] if documents else []
    lines += [_TUNING_TITLE] if tuning is not None else []
    chart.suptitle(f"{recipe}: " + "\n".join(lines), fontsize=9)
    chart.supxlabel("iteration", fontsize=9)
    chart.supylabel("error / update energy" if documents else "relative error", fontsize=9)
    return chart
