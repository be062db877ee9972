"""What the activation plots share: panels by stream and kind of layer, and their axes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .activation_statistics import Statistics

_KINDS = {
    "attn.q_proj": "q, k, v",
    "attn.o_proj": "o_proj",
    "mlp.fc1": "fc1",
    "mlp.fc2": "fc2",
}
_STREAMS = {"img": "image stream", "txt": "text stream", "uni": "unified blocks"}
# Okabe and Ito (2008), without black and the yellow that is pale on white.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7")
SIGMA_LABEL = "σ (1 = noise; sampling runs left to right)"
# Rows of a matrix that can still be labelled one by one.
_MOST_LABELS = 80


def place(name: str) -> tuple[str, str, str]:
    """("mm03", "img", "mlp.fc1") of an input's name; the stream of a unified block is "uni"."""
    block, *rest = name.split(".")
    stream = rest[0] if rest[0] in _STREAMS else "uni"
    return block, stream, ".".join(rest[-2:])


def new_figure(width: float, height: float, title: str) -> Figure:
    """An empty figure of the given size in inches that draws without a screen."""
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    return figure


def panels(figure: Figure, statistics: Statistics) -> Iterator[tuple[Axes, list[str]]]:
    """(axes, input names in order of blocks) for each stream (row) and kind of layer (column)."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name in statistics.inputs:
        _, stream, kind = place(name)
        groups.setdefault((stream, kind), []).append(name)
    streams = [stream for stream in _STREAMS if any(key[0] == stream for key in groups)]
    axes = figure.subplots(len(streams), len(_KINDS), squeeze=False)
    for row, stream in enumerate(streams):
        for column, kind in enumerate(_KINDS):
            panel = axes[row, column]
            names = groups.get((stream, kind), [])
            if not names:
                panel.set_axis_off()
                continue
            after = ", after GELU" if names[0] in statistics.post_gelu else ""
            panel.set_title(f"{_STREAMS[stream]}: {_KINDS[kind]}{after}", fontsize=9)
            panel.tick_params(labelsize=8)
            panel.grid(alpha=0.25, linewidth=0.5)
            if after:
                panel.set_facecolor("#FBF6EA")
            yield panel, names


def rows_of_panels(statistics: Statistics) -> int:
    """How many rows `panels` makes: one a stream."""
    return len({place(name)[1] for name in statistics.inputs})


def block_axis(panel: Axes, names: Sequence[str]) -> None:
    """Blocks along the axis, every one of them named where there is room."""
    every = max(1, -(-len(names) // 8))
    panel.set_xticks(
        range(0, len(names), every), [place(name)[0] for name in names[::every]], fontsize=8
    )
    panel.set_xlim(-0.5, len(names) - 0.5)


def input_label(name: str) -> str:
    """What a plot calls an input: mm03.img q, k, v for "mm03.img.attn.q_proj"."""
    block, stream, kind = place(name)
    return f"{block if stream == 'uni' else f'{block}.{stream}'} {_KINDS[kind]}"


def layer_axis(axes: Axes, statistics: Statistics) -> None:
    """Every input's name where there is room, else the first input of each block."""
    names = list(statistics.inputs)
    if len(names) > _MOST_LABELS:
        blocks = [place(name)[0] for name in names]
        first = [i for i, block in enumerate(blocks) if i == 0 or blocks[i - 1] != block]
        axes.set_yticks(first, [blocks[i] for i in first], fontsize=7)
        axes.set_ylabel("block", fontsize=9)
        return
    axes.set_yticks(range(len(names)), [input_label(name) for name in names], fontsize=7)
    axes.set_ylabel("input of (orange: after GELU)", fontsize=9)
    for label, name in zip(axes.get_yticklabels(), names, strict=True):
        if name in statistics.post_gelu:
            label.set_color(COLOURS[3])


def sigma_axis(axes: Axes, sigmas: np.ndarray) -> None:
    """Columns are measured steps; the ticks say which sigma each is."""
    every = max(1, -(-len(sigmas) // 9))
    axes.set_xticks(
        range(0, len(sigmas), every), [f"{sigma:.2f}" for sigma in sigmas[::every]], fontsize=8
    )
    axes.set_xlabel(SIGMA_LABEL, fontsize=9)


def matrix_height(count: int) -> float:
    """Inches for a matrix with `count` rows and its axis."""
    return 1.6 + (0.145 * count if count <= _MOST_LABELS else min(12.0, 0.05 * count))
