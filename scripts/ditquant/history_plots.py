"""How the learning of a recipe went, block by block: error and share of roundings decided."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .charts import PALETTE, log_axis, styled

_COLUMNS = 6
_PANEL_INCHES = (2.15, 1.75)


def _draw_block(axes: Axes, document: Mapping[str, Any]) -> Axes:
    """One block on two axes; returns the second, for the share."""
    history = document["history"]
    iterations = [point["iteration"] for point in history]
    errors = document["hard_error"]
    axes.plot(iterations, [point["error"] for point in history], color=PALETTE[0], lw=1.3)
    axes.axhline(errors["rtn"]["train"], color=PALETTE[1], lw=1.0, ls=(0, (4, 2)))
    axes.axhline(errors["result"]["train"], color=PALETTE[0], lw=1.0, ls=(0, (1, 1.2)))
    log_axis(axes, "y")
    ratio = errors["result"]["held_out"] / errors["rtn"]["held_out"]
    kept = "" if document["accepted"] else f", kept {document['kept']}"
    axes.set_title(f"{document['block']}: {ratio:.2f} × rtn held out{kept}", fontsize=8)
    axes.tick_params(labelsize=7)
    shares = axes.twinx()
    shares.spines["right"].set_visible(True)
    shares.plot(
        iterations, [100 * point["binary_share"] for point in history], color=PALETTE[2], lw=1.0
    )
    shares.set_ylim(0, 101)
    shares.tick_params(labelsize=7, colors=PALETTE[2])
    return shares


@styled()
def draw_histories(recipe: str, documents: Sequence[Mapping[str, Any]]) -> Figure:
    """One panel a block, in the order given.

    Args:
        documents: block results ("ditquant.block_result") whose rounding was learned.
    """
    columns = min(_COLUMNS, len(documents))
    rows = math.ceil(len(documents) / columns)
    width, height = _PANEL_INCHES
    chart = Figure(figsize=(columns * width + 0.6, rows * height + 0.9), layout="constrained")
    panels = chart.subplots(rows, columns, squeeze=False).ravel()
    for index, (axes, document) in enumerate(zip(panels, documents, strict=False)):
        shares = _draw_block(axes, document)
        if index % columns != columns - 1 and index + 1 < len(documents):
            shares.set_yticklabels([])
    for axes in panels[len(documents) :]:
        axes.set_visible(False)
    chart.suptitle(
        f"{recipe}: block error while learning (blue: batches, dotted: hard at the end, "
        "dashed orange: rtn, training rows)\nand share of roundings decided in % (green)",
        fontsize=9,
    )
    chart.supxlabel("iteration", fontsize=9)
    chart.supylabel("error / update energy", fontsize=9)
    return chart
