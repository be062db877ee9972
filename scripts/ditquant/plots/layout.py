"""What the activation plots share: panels by stream and kind of layer, their axes and colours.

Colours are those of Okabe and Ito, cividis and PuOr, which the colour-blind tell apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from ..activations.granularity import GRANULARITIES
from ..activations.input_statistics import InputStatistics, Statistics
from ..activations.quant_config import QuantConfig, parse_quant_config
from .charts import PALETTE, log_axis

_KINDS = {"attn.q_proj": "q, k, v", "attn.o_proj": "o_proj", "mlp.fc1": "fc1", "mlp.fc2": "fc2"}
_STREAMS = {"img": "image stream", "txt": "text stream", "uni": "unified blocks"}
BLUE, VERMILION = PALETTE[:2]
GELU_BACKGROUND = "#FBF6EA"
# There is no such layer: the last block of the text stream ends behind attention.
ABSENT = "#E4E4E4"
SIGMA = "noise level σ (no unit; 1 = pure noise, sampling runs left to right)"
SHORT_SIGMA = "noise level σ (no unit)"
COLUMNS = f"{SIGMA}; a column is a measured step"
# What a letter of a title takes, on average.
_TITLE_INCHES = 0.105
# A linear axis hides what is smaller than this part of its end.
_LINEAR_SPREAD = 15.0
# Rules whose name alone says too little.
_RULES = {"measured": "measured error", "mse": "predicted error"}


@dataclass(frozen=True)
class PlotOptions:
    """What a person may choose: keys below `activations.plots`.

    Attributes:
        snapshot_steps: steps that are drawn one by one; the nearest measured ones are taken.
        layers: how many layers are drawn where only the most variable ones have room.
    """

    snapshot_steps: Sequence[int]
    layers: int = 6


@dataclass(frozen=True)
class Shown:
    """What a plot is drawn from.

    Attributes:
        statistics: what was measured.
        document: the file of the activation configuration that is shown; empty where none is.
        options: see `PlotOptions`.
    """

    statistics: Statistics
    document: Mapping[str, Any]
    options: PlotOptions

    @property
    def config(self) -> QuantConfig:
        """The configuration of the document."""
        return parse_quant_config(self.document, "quant_config")

    @property
    def made_by(self) -> str:
        """How the document's ranges are made, for a title."""
        return made_by(self.document)

    def label(self, name: str) -> str:
        """What a plot calls an input, and whether that has passed GELU."""
        return f"{input_label(name)}{self.after_gelu(name)}"

    def after_gelu(self, name: str) -> str:
        """What is added to the label of an input that has passed GELU."""
        return _after_gelu(self.statistics, name)


def made_by(document: Mapping[str, Any]) -> str:
    """How a configuration's ranges are made, for a title."""
    made = document["configuration"]
    granularity = GRANULARITIES[made["granularity"]]
    group, rule = made.get("channel_group"), made["range"]
    words = granularity.label + (f" and group of {group} channels" if group else "")
    if granularity.ranges_over is not None:
        return words
    return f"{words}, range by {_RULES.get(rule, rule)}"


def place(name: str) -> tuple[str, str, str]:
    """("mm03", "img", "mlp.fc1") of an input's name; the stream of a unified block is "uni"."""
    block, *rest = name.split(".")
    stream = rest[0] if rest[0] in _STREAMS else "uni"
    return block, stream, ".".join(rest[-2:])


def input_label(name: str) -> str:
    """What a plot calls an input: mm03.img q, k, v for "mm03.img.attn.q_proj"."""
    block, stream, kind = place(name)
    return f"{block if stream == 'uni' else f'{block}.{stream}'} {_KINDS[kind]}"


def _after_gelu(statistics: Statistics, name: str) -> str:
    return ", after GELU" if name in statistics.post_gelu else ""


def new_figure(height: float, title: str, width: float = 13.0) -> Figure:
    """An empty figure of the given size in inches that draws without a screen.

    A title that is too long for one line takes several.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(fill(title, int(width / _TITLE_INCHES)), fontsize=12, fontweight="bold")
    return figure


def power_label(value: float) -> str:
    """4, 1/2."""
    return f"{value:g}" if value >= 1 else f"1/{1 / value:g}"


def legend(figure: Figure, handles: Any, columns: int = 3) -> None:
    """A legend below the whole figure."""
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def shades(count: int) -> np.ndarray:
    """(count, 4) colours from dark to light, in the order of blocks or of the schedule."""
    colours: np.ndarray = mpl.colormaps["cividis"](np.linspace(0.05, 0.92, count))
    return colours


def head(panel: Axes, title: str, **options: Any) -> None:
    """A title, small labels and a grid: what every panel of curves has.

    Args:
        options: of `Axes.set_title`.
    """
    panel.set_title(title, fontsize=9, **options)
    panel.tick_params(labelsize=8)
    panel.grid(True)


def paint(panel: Axes, colour: str) -> None:
    """A background that an SVG file keeps: of transparent figures the axes' own is left out."""
    panel.add_patch(
        Rectangle((0, 0), 1, 1, transform=panel.transAxes, color=colour, linewidth=0, zorder=-9)
    )


def streams_of(statistics: Statistics) -> dict[str, list[str]]:
    """Stream -> its blocks; the rows of panels, from top to bottom."""
    blocks: dict[str, dict[str, None]] = {}
    for name in statistics.inputs:
        block, stream, _ = place(name)
        blocks.setdefault(stream, {})[block] = None
    return {stream: list(blocks[stream]) for stream in _STREAMS if stream in blocks}


def panels(figure: Any, statistics: Statistics, **options: Any) -> list[tuple[Axes, list[str]]]:
    """(axes, input names in order of blocks) for each stream (row) and kind of layer (column).

    Args:
        figure: a figure or a part of one.
        options: of `Figure.subplots`.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in statistics.inputs:
        groups.setdefault(place(name)[1:], []).append(name)
    streams = list(streams_of(statistics))
    grid = figure.subplots(len(streams), len(_KINDS), squeeze=False, **options)
    made = []
    for row, stream in enumerate(streams):
        for column, kind in enumerate(_KINDS):
            panel, names = grid[row, column], groups.get((stream, kind), [])
            if not names:
                panel.set_axis_off()
                continue
            after = _after_gelu(statistics, names[0])
            head(panel, f"{_STREAMS[stream]}: {_KINDS[kind]}{after}")
            if after:
                paint(panel, GELU_BACKGROUND)
            made.append((panel, names))
    return made


def bottom_labels(figure: Any, text: str) -> None:
    """A label under every lowest panel: unlike `supxlabel` it leaves room for a legend."""
    for axes in figure.axes:
        own = axes.get_subplotspec()
        others = [other.get_subplotspec() for other in figure.axes if other.axison]
        column = [other for other in others if other.colspan.start == own.colspan.start]
        if axes.axison and all(other.rowspan.start <= own.rowspan.start for other in column):
            axes.set_xlabel(text, fontsize=8.5)


def panels_height(statistics: Statistics) -> float:
    """Inches for `panels` of curves, with a title and labels."""
    return 1.1 + 2.5 * len(streams_of(statistics))


def curve_panels(
    statistics: Statistics, title: str, **options: Any
) -> tuple[Figure, list[tuple[Axes, list[str]]]]:
    """A figure of `panels` with this title; options are those of `Figure.subplots`."""
    figure = new_figure(panels_height(statistics), title)
    return figure, panels(figure, statistics, **options)


def block_axis(panel: Axes, names: Sequence[str]) -> None:
    """Blocks along the axis, every one of them named where there is room."""
    every = 1 if len(names) <= 6 else -(-len(names) // 5)
    panel.set_xticks(
        range(0, len(names), every), [place(name)[0] for name in names[::every]], fontsize=8
    )
    panel.set_xlim(-0.5, len(names) - 0.5)


def block_handles(statistics: Statistics) -> list[Patch]:
    """What the two ends of `shades` stand for, where lines are blocks."""
    blocks = [place(name)[0] for name in statistics.inputs]
    dark, light = shades(2)
    return [
        Patch(color=dark, label=f"{blocks[0]}, the first block"),
        Patch(color=light, label=f"{blocks[-1]}, the last block"),
    ]


def range_axis(panel: Axes, low: float, high: float) -> None:
    """A vertical axis for ranges from `low` to `high`: from zero, or logarithmic if they differ."""
    if low > 0 and high / low > _LINEAR_SPREAD:
        log_range(panel, low / 1.15, high * 1.15)
    else:
        panel.set_ylim(0, 1.08 * max(high, 1e-12))


def log_range(panel: Axes, low: float, high: float) -> None:
    """A logarithmic vertical axis from `low` to `high`."""
    panel.set_ylim(low, high)
    log_axis(panel, "y")
    panel.set_ylim(low, high)


def sigma_axis(axes: Axes, sigmas: np.ndarray) -> None:
    """A linear axis of sigma, from the first measured step on the left to the last."""
    margin = 0.02 * float(sigmas[0] - sigmas[-1]) or 0.02
    axes.set_xlim(float(sigmas[0]) + margin, float(sigmas[-1]) - margin)


def columns_axis(axes: Axes, sigmas: np.ndarray, ticks: int) -> None:
    """Columns are measured steps; evenly spaced ticks, `ticks` at most, say which sigma each is."""
    last = max(len(sigmas) - 1, 1)
    closest = -(-last // (ticks - 1))
    # A little wider apart, one of them may fall on the last column.
    every = next((e for e in range(closest, closest + 3) if last % e == 0), closest)
    shown = range(0, len(sigmas), every)
    axes.set_xticks(shown, [f"{sigmas[index]:.2f}" for index in shown], fontsize=8)


def matrix_panels_height(statistics: Statistics) -> float:
    """Inches for `matrix_panels`: a row a block, of all streams below each other."""
    blocks = sum(max(len(blocks), 5) for blocks in streams_of(statistics).values())
    return 1.0 + 0.35 * len(streams_of(statistics)) + 0.148 * blocks


def matrix_panels(
    figure: Any, statistics: Statistics, values: Mapping[str, np.ndarray], **options: Any
) -> tuple[Any, list[tuple[Axes, dict[str, int]]]]:
    """Panels of one row a block and one column a measured step.

    So laid out, the 48 text and image blocks of a large model have room for a name each.

    Args:
        values: input name -> (S,).
        options: of `Axes.imshow`.

    Returns:
        An image to make a colour bar of, and (axes, input name -> row) of every panel.
    """
    blocks = streams_of(statistics)
    heights = [max(len(names), 5) for names in blocks.values()]
    made = []
    image = None
    seen: set[str] = set()
    for panel, names in panels(figure, statistics, sharex=True, height_ratios=heights):
        stream = place(names[0])[1]
        rows = blocks[stream]
        row_of = {name: rows.index(place(name)[0]) for name in names}
        matrix = np.full((len(rows), len(statistics.sigmas)), np.nan)
        for name, row in row_of.items():
            matrix[row] = values[name]
        panel.grid(False)
        paint(panel, ABSENT)
        image = panel.imshow(matrix, aspect="auto", interpolation="none", **options)
        every = max(1, -(-len(rows) // 24))
        labels = rows[::every] if stream not in seen else []
        panel.set_yticks(range(0, len(rows), every) if labels else [], labels, fontsize=7)
        seen.add(stream)
        columns_axis(panel, statistics.sigmas, 6)
        made.append((panel, row_of))
    return image, made


def matrix_figure(
    statistics: Statistics,
    title: str,
    values: Mapping[str, np.ndarray],
    clip: str,
    **options: Any,
) -> tuple[Figure, Colorbar, list[tuple[Axes, dict[str, int]]]]:
    """A figure of `matrix_panels` with a colour bar, and the panels with their rows.

    Args:
        values: see `matrix_panels`.
        clip: the ends of the bar beyond which values lie: "neither", "both", "min" or "max".
        options: of `Axes.imshow`.
    """
    figure = new_figure(matrix_panels_height(statistics), title)
    image, made = matrix_panels(figure, statistics, values, **options)
    axes = [panel for panel, _ in made]
    return figure, figure.colorbar(image, ax=axes, pad=0.01, aspect=40, extend=clip), made


# Which steps and layers are shown where not all of them have room.

# A channel counts as an outlier above this multiple of its layer's median channel.
OUTLIER = 4.0
_TINY = 1e-12


def nearest_steps(steps: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """Positions in `steps` of the measured steps nearest to the wanted ones, each once."""
    measured = np.asarray(steps)
    return sorted({int(np.abs(measured - step).argmin()) for step in wanted})


def drift(measured: InputStatistics) -> float:
    """The largest range over the schedule, as a multiple of the smallest."""
    return float(measured.absmax.max() / max(measured.absmax.min(), _TINY))


def variation(measured: InputStatistics) -> float:
    """Coefficient of variation of the range over the schedule: deviation over mean."""
    absmax = measured.absmax.astype(np.float64)
    return float(absmax.std() / max(absmax.mean(), _TINY))


def channel_absmax(measured: InputStatistics) -> np.ndarray:
    """(S, channels) the largest |x| of every channel at every measured step."""
    return np.maximum(np.abs(measured.channel_min), np.abs(measured.channel_max))


def outlier_ratio(measured: InputStatistics) -> float:
    """The largest channel of all steps, as a multiple of the median channel."""
    largest = channel_absmax(measured).max(axis=0)
    return float(largest.max() / max(float(np.median(largest)), _TINY))


def most_variable(
    statistics: Statistics, count: int, among: Iterable[str] | None = None
) -> list[str]:
    """The inputs whose range drifts most, the one that drifts most first."""
    names = statistics.inputs if among is None else among
    return sorted(names, key=lambda name: (-drift(statistics.inputs[name]), name))[:count]


def most_outlying(statistics: Statistics, count: int) -> list[str]:
    """The inputs with the largest outlier channels, the largest first."""
    inputs = statistics.inputs
    return sorted(inputs, key=lambda name: (-outlier_ratio(inputs[name]), name))[:count]


def variable_of_both_kinds(statistics: Statistics, count: int) -> list[str]:
    """The most variable inputs, half of them after GELU, in the model's order."""
    after = [name for name in statistics.inputs if name in statistics.post_gelu]
    others = [name for name in statistics.inputs if name not in statistics.post_gelu]
    shifted = most_variable(statistics, max(count // 2, count - len(others)), after)
    chosen = {*shifted, *most_variable(statistics, count - len(shifted), others)}
    return [name for name in statistics.inputs if name in chosen]
