"""Plots of activation statistics and of the configurations made from them.

Every plot shows inputs rather than linears (q, k and v read one). Panels are laid out by stream and
kind of layer with the blocks along the axis, so that 24 or 57 blocks read as well as 6. Colours are
those of cividis and of Okabe and Ito, which survive colour blindness and grey printing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import BoundaryNorm, ListedColormap, LogNorm
from matplotlib.figure import Figure

from .activation_statistics import Statistics
from .histogram import NUM_BINS, bin_edges
from .ranges import TIER_BITS, largest_code

_KINDS = {
    "attn.q_proj": "q, k, v",
    "attn.o_proj": "o_proj",
    "mlp.fc1": "fc1",
    "mlp.fc2": "fc2",
}
_STREAMS = {"img": "image stream", "txt": "text stream", "uni": "unified blocks"}
# Okabe and Ito (2008), without black and the yellow that is pale on white.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7")
_TIER_COLOURS = {4: "#56B4E9", 6: "#E69F00", 8: "#0B3C5D"}
_SIGMA_LABEL = "σ (1 = noise; sampling runs left to right)"
_MOST_VARIABLE = 6
# Rows of a matrix that can still be labelled one by one.
_MOST_LABELS = 80


def _place(name: str) -> tuple[str, str, str]:
    """("mm03", "img", "mlp.fc1") of an input's name; the stream of a unified block is "uni"."""
    block, *rest = name.split(".")
    stream = rest[0] if rest[0] in _STREAMS else "uni"
    return block, stream, ".".join(rest[-2:])


def _figure(width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    return figure


def _panels(figure: Figure, statistics: Statistics) -> Iterator[tuple[Axes, list[str]]]:
    """(axes, input names in order of blocks) for each stream (row) and kind of layer (column)."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name in statistics.inputs:
        _, stream, kind = _place(name)
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


def _rows_of_panels(statistics: Statistics) -> int:
    return len({_place(name)[1] for name in statistics.inputs})


def _block_axis(panel: Axes, names: Sequence[str]) -> None:
    every = max(1, -(-len(names) // 8))
    panel.set_xticks(
        range(0, len(names), every), [_place(name)[0] for name in names[::every]], fontsize=8
    )
    panel.set_xlim(-0.5, len(names) - 0.5)


def nearest_steps(steps: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """Positions in `steps` of the measured steps nearest to the wanted ones, each once."""
    measured = np.asarray(steps)
    return sorted({int(np.abs(measured - step).argmin()) for step in wanted})


def _plot_absmax(
    statistics: Statistics, documents: Sequence[Mapping[str, Any]], snapshot_steps: Sequence[int]
) -> Figure:
    figure = _figure(13, 0.8 + 2.7 * _rows_of_panels(statistics), "Largest |input| of every layer")
    positions = nearest_steps(statistics.steps, snapshot_steps)
    shades = mpl.colormaps["cividis"](np.linspace(0.05, 0.92, len(positions)))
    handles: list[Any] = []
    for panel, names in _panels(figure, statistics):
        absmax = np.array([statistics.inputs[name].absmax for name in names])
        handles = [
            panel.plot(
                range(len(names)), absmax[:, position], "o-", color=shade, markersize=3.5,
                linewidth=1.1, label=f"σ = {statistics.sigmas[position]:.3g}",
            )[0]
            for position, shade in zip(positions, shades, strict=True)
        ]  # fmt: skip
        panel.set_ylim(0, 1.08 * absmax.max())
        _block_axis(panel, names)
    figure.supylabel("max |x| over images, tokens and channels", fontsize=9)
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9, frameon=False,
    )  # fmt: skip
    return figure


def _plot_drift(
    statistics: Statistics, documents: Sequence[Mapping[str, Any]], snapshot_steps: Sequence[int]
) -> Figure:
    figure = _figure(9, 5.2, "Inputs whose range moves most over the schedule")
    axes = figure.subplots()
    absmax = {name: measured.absmax for name, measured in statistics.inputs.items()}
    drift = {name: row.max() / max(row.min(), 1e-12) for name, row in absmax.items()}
    chosen = sorted(drift, key=lambda name: (-drift[name], name))[:_MOST_VARIABLE]
    for name, colour, marker in zip(chosen, _COLOURS, "os^Dv<", strict=False):
        gelu = ", after GELU" if name in statistics.post_gelu else ""
        axes.plot(
            statistics.sigmas, absmax[name], marker=marker, color=colour, markersize=4,
            linewidth=1.4, label=f"{_label(name)} ({drift[name]:.1f}-fold{gelu})",
        )  # fmt: skip
    axes.invert_xaxis()
    axes.set_ylim(bottom=0)
    axes.set_xlabel(_SIGMA_LABEL)
    axes.set_ylabel("max |x|")
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _label(name: str) -> str:
    """What a plot calls an input: mm03.img q, k, v for "mm03.img.attn.q_proj"."""
    block, stream, kind = _place(name)
    return f"{block if stream == 'uni' else f'{block}.{stream}'} {_KINDS[kind]}"


def _layer_axis(axes: Axes, statistics: Statistics) -> None:
    """Every input's name where there is room, else the first input of each block."""
    names = list(statistics.inputs)
    if len(names) > _MOST_LABELS:
        blocks = [_place(name)[0] for name in names]
        first = [i for i, block in enumerate(blocks) if i == 0 or blocks[i - 1] != block]
        axes.set_yticks(first, [blocks[i] for i in first], fontsize=7)
        axes.set_ylabel("block", fontsize=9)
        return
    axes.set_yticks(range(len(names)), [_label(name) for name in names], fontsize=7)
    axes.set_ylabel("input of (orange: after GELU)", fontsize=9)
    for label, name in zip(axes.get_yticklabels(), names, strict=True):
        if name in statistics.post_gelu:
            label.set_color(_COLOURS[3])


def _sigma_axis(axes: Axes, sigmas: np.ndarray) -> None:
    """Columns are measured steps; the ticks say which sigma each is."""
    every = max(1, -(-len(sigmas) // 9))
    axes.set_xticks(
        range(0, len(sigmas), every), [f"{sigma:.2f}" for sigma in sigmas[::every]], fontsize=8
    )
    axes.set_xlabel(_SIGMA_LABEL, fontsize=9)


def _matrix_height(count: int) -> float:
    return 1.6 + (0.145 * count if count <= _MOST_LABELS else min(12.0, 0.05 * count))


def _plot_heatmap(
    statistics: Statistics, documents: Sequence[Mapping[str, Any]], snapshot_steps: Sequence[int]
) -> Figure:
    names = list(statistics.inputs)
    figure = _figure(8, _matrix_height(len(names)), "Range of every input over the schedule")
    axes = figure.subplots()
    absmax = np.array([statistics.inputs[name].absmax for name in names])
    floor = max(absmax.max() * 1e-4, 1e-12)
    image = axes.imshow(
        np.maximum(absmax, floor), aspect="auto", cmap="cividis", interpolation="nearest",
        norm=LogNorm(vmin=max(absmax.min(), floor), vmax=max(absmax.max(), 2 * floor)),
    )  # fmt: skip
    bar = figure.colorbar(image, ax=axes, label="max |x| (log scale)", shrink=0.7)
    low, high = absmax.min(), absmax.max()
    ticks = [tick for tick in (2.0 ** np.arange(-12, 18)) if low <= tick <= high]
    bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    bar.ax.minorticks_off()
    _layer_axis(axes, statistics)
    _sigma_axis(axes, statistics.sigmas)
    return figure


def _bits(document: Mapping[str, Any], names: Sequence[str]) -> np.ndarray:
    """(inputs, sigmas) bits of a configuration."""
    count = len(document["sigmas"])
    return np.array([np.broadcast_to(document["layers"][name]["bits"], count) for name in names])


def _plot_tiers(
    statistics: Statistics, documents: Sequence[Mapping[str, Any]], snapshot_steps: Sequence[int]
) -> Figure:
    (document,) = documents
    names = list(statistics.inputs)
    summary = document["summary"]
    title = f"Tiers over the schedule: {summary['average_bits']:.2f} bits on average"
    figure = _figure(8, 1.6 + _matrix_height(len(names)), title)
    share, matrix = figure.subplots(
        2, 1, sharex=True, height_ratios=[1.5, _matrix_height(len(names)) - 1]
    )
    colours = [_TIER_COLOURS[bits] for bits in TIER_BITS]
    layers = [np.array(summary["layers_per_sigma"][f"A{bits}"]) for bits in TIER_BITS]
    total = sum(layers)
    percent = [100 * count / total for count in layers]
    bottom = np.zeros(len(statistics.sigmas))
    for bits, part, colour in zip(TIER_BITS, percent, colours, strict=True):
        label = f"A{bits}: {100 * summary['shares'][f'A{bits}']:.0f} %"
        share.bar(range(len(part)), part, 1.0, bottom=bottom, color=colour, label=label)
        bottom += part
    share.set_ylim(0, 100)
    share.set_ylabel("share of\nlinears, %", fontsize=9)
    share.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9, frameon=False)
    # One colour an entry of TIER_BITS: each bin starts at a tier's bits.
    tiers = BoundaryNorm([*TIER_BITS, TIER_BITS[-1] + 1], len(TIER_BITS))
    matrix.imshow(
        _bits(document, names), aspect="auto", interpolation="nearest", norm=tiers,
        cmap=ListedColormap(colours),
    )  # fmt: skip
    _layer_axis(matrix, statistics)
    _sigma_axis(matrix, statistics.sigmas)
    return figure


def _upper_limits(entry: Mapping[str, Any]) -> np.ndarray:
    """(sigmas or 1,) the largest |x| that a layer's codes stand for."""
    scales, bits = np.array(entry["scales"]), np.array(entry["bits"])
    codes = np.array([largest_code(int(b)) for b in bits])
    return scales * codes + np.array(entry.get("shifts", 0.0))


def _plot_distributions(
    statistics: Statistics, documents: Sequence[Mapping[str, Any]], snapshot_steps: Sequence[int]
) -> Figure:
    (document,) = documents
    rule = document["configuration"]["range"]
    figure = _figure(
        13, 0.8 + 2.7 * _rows_of_panels(statistics),
        f"Distribution of |input| by kind of layer, and the configured range ({rule})",
    )  # fmt: skip
    edges = bin_edges()
    # Two bins together are smooth enough to read; bin 0, exact zeros, has no place on a log axis.
    pairs = np.arange(1, NUM_BINS - 1, 2)
    centers = np.sqrt(np.maximum(edges[pairs], edges[2]) * edges[pairs + 2])
    octaves = np.log2(edges[pairs + 2] / np.maximum(edges[pairs], edges[2] * 2 ** (-1 / 16)))
    for panel, names in _panels(figure, statistics):
        shades = mpl.colormaps["cividis"](np.linspace(0.05, 0.92, len(names)))
        for name, shade in zip(names, shades, strict=True):
            counts = statistics.inputs[name].histogram.sum(axis=0)
            density = (counts[pairs] + counts[pairs + 1]) / counts.sum() / octaves
            panel.plot(centers, np.where(density > 0, density, np.nan), color=shade, linewidth=1)
        limits = np.concatenate([_upper_limits(document["layers"][name]) for name in names])
        panel.axvspan(limits.min(), limits.max(), color=_COLOURS[3], alpha=0.25, linewidth=0)
        panel.axvline(float(np.median(limits)), color=_COLOURS[3], linewidth=1.2, linestyle="--")
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        # Plain labels: those of a log axis are set as mathematics, which takes seconds here.
        panel.set_yticks([1e-6, 1e-4, 1e-2, 1], ["0.0001 %", "0.01 %", "1 %", "100 %"])
        panel.minorticks_off()
        panel.set_xlim(2.0**-9, 2.0 ** np.ceil(np.log2(limits.max() * 1.2)))
        panel.set_ylim(1e-7, 2)
        panel.xaxis.set_major_formatter(
            lambda value, _: f"{value:g}" if value >= 1 else f"1/{1 / value:g}"
        )
    figure.supxlabel(
        "|x| (dark: first block, light: last block; orange: from the smallest to the largest range "
        "over blocks and σ, dashed: median)",
        fontsize=9,
    )
    figure.supylabel("share of values per octave", fontsize=9)
    return figure


_Draw = Callable[[Statistics, Sequence[Mapping[str, Any]], Sequence[int]], Figure]
PLOTS: dict[str, _Draw] = {
    "absmax": _plot_absmax,
    "drift": _plot_drift,
    "heatmap": _plot_heatmap,
    "tiers": _plot_tiers,
    "distributions": _plot_distributions,
}


def draw(
    plot: str,
    statistics: Statistics,
    documents: Sequence[Mapping[str, Any]],
    snapshot_steps: Sequence[int],
) -> Figure:
    """The figure named `plot`.

    Args:
        plot: absmax, drift, heatmap, tiers (needs the multi-tier configuration) or distributions
            (needs the single-tier one).
        documents: the configurations that the plot needs.
        snapshot_steps: steps that `absmax` shows; the nearest measured ones are taken.
    """
    return PLOTS[plot](statistics, documents, snapshot_steps)
