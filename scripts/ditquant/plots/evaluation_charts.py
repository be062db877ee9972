"""Charts of an evaluation: errors by variant, by block, along the schedule, and against size.

`CHARTS` lists them, with what the report says over them. Every chart takes the evaluations of the
same captions, in the order of the table, and gives a figure. `full` is never shown: its errors are
zero and have no place on a logarithmic axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..metrics import bootstrap_interval
from ..planning.variants import FULL, NOISE_FLOOR, WEIGHTS, Variant
from ..readable import fmt
from . import layout
from .charts import (
    LineStyle,
    figure,
    legend_below,
    legend_height,
    line_styles,
    log_axis,
    panels,
    styled,
)

# What the inputs of linears are, in order of computation; k and v read the input of q.
_KINDS = {"attn.q_proj": "attention", "attn.o_proj": "output of attention", "mlp.fc1": "MLP",
          "mlp.fc2": "behind GELU"}  # fmt: skip
_STREAM_TITLES = {"img": "image stream", "txt": "text stream", "uni": "unified stream"}
_DECIBELS = "SQNR in dB (higher is better)"
_MEDIAN_ERROR = "median latent error"


def _numbers(decibels: Sequence[float | None]) -> np.ndarray:
    """nan where nothing was lost."""
    return np.array([np.nan if value is None else value for value in decibels], dtype=np.float64)


@dataclass(frozen=True)
class _Evaluation:
    """One variant's evaluation, by its document ("ditquant.evaluation")."""

    document: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.document["variant"])

    def scores(self, key: str) -> np.ndarray:
        """(captions, ...) what captions have under a key; equal pictures have no finite PSNR."""
        scores = (caption[key] for caption in self.document["captions"])
        return np.array([score for score in scores if score is not None], dtype=np.float64)

    def error(self) -> tuple[float, float, float]:
        """Median latent error and its interval."""
        errors = self.scores("latent_relative_error")
        return float(np.median(errors)), *bootstrap_interval(errors, np.median)

    def streams(self) -> dict[str, dict[str, np.ndarray]]:
        """Stream ("img") -> block -> dB of every measured step."""
        found: dict[str, dict[str, np.ndarray]] = {}
        for name, decibels in self.document["block_sqnr"]["streams"].items():
            block, stream = name.split(".")
            found.setdefault(stream, {})[block] = _numbers(decibels)
        return found

    def inputs(self) -> dict[tuple[str, str], np.ndarray]:
        """(stream, kind) -> (sigmas,) medians over blocks of the inputs' SQNR in dB."""
        found: dict[tuple[str, str], list[np.ndarray]] = {}
        for name, decibels in self.document["input_sqnr"].items():
            found.setdefault(layout.place(name)[1:], []).append(_numbers(decibels))
        return {key: np.nanmedian(np.array(rows), axis=0) for key, rows in found.items()}


@dataclass(frozen=True)
class _Shown:
    """All variants but `full`, and the sigmas that were measured."""

    variants: list[_Evaluation]
    sigmas: Sequence[float]

    @property
    def styles(self) -> dict[str, LineStyle]:
        return line_styles(one.name for one in self.variants)

    def having(self, *keys: str) -> list[_Evaluation]:
        """The variants whose documents say something under all of these keys."""
        return [one for one in self.variants if all(map(one.document.get, keys))]


# --------------------------------------------------------------------------- the noise floor


def _finite(values: Iterable[np.ndarray]) -> np.ndarray:
    """All numbers of some arrays, without nan."""
    joined = np.concatenate([np.zeros(0), *(np.ravel(array) for array in values)])
    return joined[~np.isnan(joined)]


def _far_floor(curves: Mapping[str, np.ndarray], log: bool) -> np.ndarray | None:
    """The noise floor's numbers, if they would take more than half of an axis shared with the rest.

    Then it is stated and not drawn: float16 is often some decades from what quantization does, and
    the variants would be indistinguishable.
    """
    floor = _finite(values for name, values in curves.items() if name == NOISE_FLOOR)
    others = _finite(values for name, values in curves.items() if name != NOISE_FLOOR)
    if floor.size == 0 or others.size == 0:
        return None

    def extent(values: np.ndarray) -> float:
        # Zero is beyond every logarithmic axis.
        return float(np.ptp(np.log10(np.maximum(values, 1e-30)) if log else values))

    # One decade or 10 dB is what the others take at the least.
    usual = max(extent(others), 1.0 if log else 10.0)
    return floor if extent(np.concatenate([floor, others])) > 2 * usual else None


def _range(values: np.ndarray, how: str) -> str:
    low, high = (fmt(float(end), how) for end in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"


# ----------------------------------------------------------------------------- every caption


def _strip(axes: Axes, rows: Sequence[np.ndarray], colors: Sequence[str]) -> None:
    """Every caption as a dot, the median as a bar; the first row is on top."""
    for height, (values, color) in enumerate(zip(rows, colors, strict=True)):
        count = len(values)
        if count == 0:
            continue
        # An even spread in a fixed order: dots do not hide each other, and nothing is random.
        offsets = np.linspace(-0.24, 0.24, count) if count > 1 else np.zeros(1)
        axes.plot(values, height + offsets, "o", color=color, ms=4, alpha=0.55, mew=0)
        median = float(np.median(values))
        axes.plot([median, median], [height - 0.36, height + 0.36], color=color, lw=2.6)
    axes.set_ylim(len(rows) - 0.45, -0.55)


def _plot_scores(shown: _Shown, key: str, label: str, log: bool) -> Figure:
    """One score of every caption, one row a variant.

    Args:
        log: the axis is logarithmic and left is better; else it is in dB and right is better.
    """
    rows = {one.name: one.scores(key) for one in shown.variants}
    names = list(rows)
    colors = [shown.styles[name]["color"] for name in names]
    chart, axes = figure(4.9, 0.9 + 0.42 * len(names))
    floor = _far_floor(rows, log)
    if floor is not None:
        rows[NOISE_FLOOR] = np.zeros(0)
        x, text, side = (0.01, "← {}", "left") if log else (0.99, "{} →", "right")
        axes.text(
            x, names.index(NOISE_FLOOR), text.format(_range(floor, "sig" if log else "db")),
            transform=axes.get_yaxis_transform(), ha=side, va="center",
            color=colors[names.index(NOISE_FLOOR)], fontsize=8.5,
        )  # fmt: skip
    _strip(axes, list(rows.values()), colors)
    if log:
        log_axis(axes, "x")
    axes.set_xlabel(label)
    axes.set_yticks(range(len(names)), names)
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return chart


# -------------------------------------------------------------- along the schedule, by block


def _draw_curves(
    axes: Axes,
    places: Sequence[float],
    curves: Mapping[str, np.ndarray],
    styles: Mapping[str, LineStyle],
    log: bool = False,
    title: str = "",
) -> None:
    """One line a variant; a noise floor that is far from the others is stated in the title."""
    floor = _far_floor(curves, log)
    for name, values in curves.items():
        if name != NOISE_FLOOR or floor is None:
            axes.plot(places, values, ms=4.5, lw=1.3, label=name, **styles[name])
    if log:
        log_axis(axes, "y")
    if floor is not None:
        stated = f"noise floor: {_range(floor, 'sig' if log else 'db')}"
        title = f"{title} ({stated})" if title else stated
    axes.set_title(title, fontsize=9)
    axes.grid(axis="y")


def _plot_by_sigma(
    shown: _Shown, curves: Mapping[str, np.ndarray], label: str, log: bool
) -> Figure:
    """One line a variant against sigma, from noise (left) to picture (right)."""
    chart, axes = figure(4.7, 3.1 + legend_height(len(curves), 2))
    _draw_curves(axes, shown.sigmas, curves, shown.styles, log)
    axes.set_ylabel(label)
    axes.set_xlim(1.03, -0.03)
    axes.set_xlabel("sigma (1: noise, 0: picture)")
    legend_below(chart, axes, 2)
    return chart


def _plot_medians(shown: _Shown, key: str, label: str) -> Figure:
    """Medians over captions of what each has at every measured step."""
    middles = {one.name: np.median(one.scores(key), axis=0) for one in shown.variants}
    # Zero has no place on a logarithmic axis.
    curves = {name: np.where(middle > 0, middle, np.nan) for name, middle in middles.items()}
    return _plot_by_sigma(shown, curves, label, log=True)


def _plot_last_block(shown: _Shown) -> Figure:
    """SQNR of the image stream behind the last block."""
    streams = {one.name: one.streams() for one in shown.having("block_sqnr")}
    curves = {
        name: list(own.get("uni", own["img"]).values())[-1] for name, own in streams.items()
    }  # fmt: skip
    return _plot_by_sigma(shown, curves, _DECIBELS, log=False)


def _median(values: np.ndarray) -> float:
    """Over the steps at which something was lost; nan if there is none."""
    finite = _finite([values])
    return float(np.median(finite)) if finite.size else float("nan")


def _plot_blocks(shown: _Shown) -> Figure:
    """SQNR of every block's output, the median over the measured steps; one panel a stream."""
    streams = {one.name: one.streams() for one in shown.having("block_sqnr")}
    kinds = next(iter(streams.values()), {})
    chart, axes = panels(9.6, 3.1 + legend_height(len(streams), 4), max(1, len(kinds)))
    for panel, (kind, found) in zip(axes, kinds.items(), strict=False):
        blocks = list(found)
        curves = {
            name: np.array([_median(own[kind][block]) for block in blocks])
            for name, own in streams.items()
        }
        _draw_curves(panel, range(len(blocks)), curves, shown.styles, title=_STREAM_TITLES[kind])
        every = 1 if len(blocks) <= 12 else 2
        panel.set_xticks(range(0, len(blocks), every), blocks[::every])
        panel.tick_params(axis="x", rotation=90 if len(blocks) > 8 else 0)
    axes[0].set_ylabel(_DECIBELS)
    legend_below(chart, axes[0], 4)
    return chart


def _nothing(width: float, height: float) -> Figure:
    """A chart that has nothing to show."""
    chart, axes = figure(width, height)
    text = "no evaluated variant quantizes activations"
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes)
    axes.set_xticks([])
    axes.set_yticks([])
    return chart


def _plot_inputs(shown: _Shown) -> Figure:
    """SQNR of the linears' inputs against sigma, one panel for each kind of the first stream."""
    curves = {one.name: one.inputs() for one in shown.having("activations", "input_sqnr")}
    if not curves:
        return _nothing(9.6, 1.6)
    found = next(iter(curves.values()))
    stream, title = (
        ("img", "image") if any(key[0] == "img" for key in found) else ("uni", "unified")
    )
    kinds = [kind for kind in _KINDS if (stream, kind) in found]
    chart, axes = panels(9.6, 3.0 + legend_height(len(curves), 4), len(kinds))
    for panel, kind in zip(axes, kinds, strict=True):
        lines = {name: own[stream, kind] for name, own in curves.items()}
        _draw_curves(panel, shown.sigmas, lines, shown.styles, title=f"{title}: {_KINDS[kind]}")
        panel.set_xlim(1.03, -0.03)
        # Panels stand close: labels at both ends of an axis would meet the next one's.
        panel.set_xticks([1.0, 0.5, 0.0], ["1", "0.5", "0"])
        panel.set_xlabel("sigma")
    axes[0].set_ylabel(_DECIBELS)
    legend_below(chart, axes[0], 4)
    return chart


# ------------------------------------------------------------------ against size and bits


def _draw_medians(
    axes: Axes, shown: _Shown, variants: Sequence[_Evaluation], places: Sequence[float], size: float
) -> None:
    """Each variant's median latent error with its interval."""
    for one, x in zip(variants, places, strict=True):
        median, low, high = one.error()
        style = shown.styles[one.name]
        axes.plot([x, x], [low, high], color=style["color"], lw=1.1, alpha=0.7)
        axes.plot(x, median, style["marker"], color=style["color"], ms=size, label=one.name)


def _dodged(
    values: Sequence[float], span: float, near: float, step: float, widest: float = np.inf
) -> list[float]:
    """Values that are the same, moved apart around their place.

    Args:
        near, step, widest: what counts as the same, how far its values are moved apart, and all of
            them together at most; parts of `span`.
    """
    places = []
    for index, value in enumerate(values):
        same = [at for at, other in enumerate(values) if abs(other - value) < near * span]
        apart = min(step, widest / len(same)) * span
        places.append(value + apart * (same.index(index) - (len(same) - 1) / 2))
    return places


def _finish(chart: Figure, axes: Axes, values: Sequence[float], span: float, label: str) -> Figure:
    """Axes, labels and legend of a chart of errors against `values`."""
    axes.set_xlim(min(values, default=0.0) - 0.25 * span, max(values, default=1.0) + 0.25 * span)
    log_axis(axes, "y")
    axes.set_xlabel(label)
    axes.set_ylabel(_MEDIAN_ERROR)
    axes.grid(axis="both")
    legend_below(chart, axes, 2)
    return chart


def _plot_size(shown: _Shown) -> Figure:
    """Median latent error with its interval against the bytes of the model, of quantized models."""
    variants = [one for one in shown.variants if one.name != NOISE_FLOOR]
    sizes = [one.document["model_bytes"] / 1e6 for one in variants]
    smallest, largest = min(sizes, default=0.0), max(sizes, default=1.0)
    span = max(largest - smallest, 0.1 * largest)
    chart, axes = figure(4.7, 3.1 + legend_height(len(variants), 2))
    _draw_medians(axes, shown, variants, _dodged(sizes, span, 1e-9, 0.025), 6.5)
    if smallest == largest:
        axes.set_xticks([smallest], [f"{smallest:.1f}"])
    return _finish(chart, axes, sizes, span, "size of the MM-DiT in MB (left is better)")


def _plot_bits(shown: _Shown) -> Figure:
    """Median latent error with its interval against the average bits of the activations.

    A line across shows each recipe's weights with full-precision activations, where evaluated.
    """
    variants = shown.having("activations")
    height = 3.3 + legend_height(len(variants), 2)
    if not variants:
        return _nothing(4.7, height)
    chart, axes = figure(4.7, height)
    bits = [one.document["activations"]["average_bits"] for one in variants]
    span = max(max(bits) - min(bits), 1.0)
    _draw_medians(axes, shown, variants, _dodged(bits, span, 0.05, 0.03, 0.3), 6)
    recipes = {Variant.parse(one.name).recipe for one in variants} - {None}
    for one in shown.variants:
        variant = Variant.parse(one.name)
        if variant.kind == WEIGHTS and variant.recipe in recipes:
            median, _, _ = one.error()
            axes.axhline(median, color="0.45", lw=0.9, ls=(0, (4, 3)), zorder=0)
            across = axes.get_yaxis_transform()
            axes.text(0.01, median, one.name, fontsize=7, va="bottom", transform=across)
    return _finish(chart, axes, bits, span, "average bits of the activations (left is smaller)")


@dataclass(frozen=True)
class Chart:
    """One chart of the evaluation.

    Attributes:
        title, note: over it in the report.
        plot: draws what is shown.
        wide: needs the page's whole width.
    """

    title: str
    note: str
    plot: Callable[[_Shown], Figure]
    wide: bool = False

    @styled()
    def draw(self, documents: Sequence[Mapping[str, Any]]) -> Figure:
        """The chart of the evaluations in these files."""
        shown = [_Evaluation(one) for one in documents if one["variant"] != FULL]
        return self.plot(_Shown(shown, documents[0]["measured_sigmas"]))


CHARTS = {
    "errors": Chart(
        "Distance of the final latents.",
        "One dot a caption, the bar is the median.",
        partial(_plot_scores, key="latent_relative_error", log=True,
                label="latent relative error (left is better)"),
    ),
    "psnr": Chart(
        "Distance of the pictures.",
        "One dot a caption, the bar is the median.",
        partial(_plot_scores, key="psnr", log=False, label="PSNR in dB (right is better)"),
    ),
    "velocity": Chart(
        "What one step adds.",
        "Error of single steps at full precision's latents.",
        partial(_plot_medians, key="velocity_errors", label="relative velocity error"),
    ),
    # The first step starts from the same noise.
    "divergence": Chart(
        "How errors add up.",
        "Distance of the free-running latents, relative.",
        partial(_plot_medians, key="divergence", label="relative distance of latents"),
    ),
    "blocks": Chart(
        "Signal to noise behind every block.",
        "Of the streams that leave it, at full precision's latents; the median over the steps.",
        _plot_blocks,
        wide=True,
    ),
    "block-sigma": Chart(
        "Signal to noise behind the last block.",
        "Of the image stream, along the schedule.",
        _plot_last_block,
    ),
    "bits": Chart(
        "Activation bits against quality.",
        "Averages over all values that linears read; weights alone have none quantized.",
        _plot_bits,
    ),
    "inputs": Chart(
        "Signal to noise of what linears read.",
        "Of activation quantization alone, at full precision's latents; medians over blocks.",
        _plot_inputs,
        wide=True,
    ),
    "size": Chart(
        "Size against quality.",
        "Equal sizes stand beside each other; bars are 95 % intervals of the median.",
        _plot_size,
    ),
}  # fmt: skip
