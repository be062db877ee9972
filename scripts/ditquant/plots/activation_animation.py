"""The drift of the ranges as a moving picture: one frame a measured step, from noise to image."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageColor

from ..activations.input_statistics import Statistics
from . import layout
from .activation_maxima import MAX_LABEL
from .charts import styled
from .layout import BLUE, GELU_BACKGROUND, VERMILION

_WIDTH = 11.0
_PIXELS_AN_INCH = 90
_FRAME_MS = 280
# The last frame rests before the film begins again.
_LAST_MS = 1600
_BAND = "#D9D9D9"
_BLENDS = 20
# Inches of the strip that shows where in the schedule a frame is.
_STRIP = 1.0


def _palette() -> Image.Image:
    """Every colour of the film's and its blends: of ink with paper where an edge is smooth."""
    inks = [(10, 11, 12), (119, 119, 119), *(ImageColor.getrgb(c) for c in (BLUE, VERMILION))]
    papers = [(255, 255, 255), *(ImageColor.getrgb(c) for c in (GELU_BACKGROUND, _BAND))]
    blends = np.linspace(0, 1, _BLENDS)[:, None]
    colours = [(1 - blends) * ink + blends * np.array(paper) for ink in inks for paper in papers]
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.concatenate(colours).round().astype(np.uint8).tobytes())
    return palette


class Film:
    """A figure whose curves move from step to step.

    Attributes:
        figure: as the last call of `show` left it.
    """

    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics
        height = layout.panels_height(statistics) * 0.9 + _STRIP
        self.figure: Figure = layout.new_figure(
            height, "How ranges drift over the schedule", _WIDTH
        )
        above, below = self.figure.subfigures(2, 1, height_ratios=[_STRIP, height - _STRIP])
        schedule = above.subplots()
        schedule.set_yticks([])
        schedule.spines["left"].set_visible(False)
        schedule.set_xlabel("noise level σ (no unit; 1 = pure noise, 0 = image)", fontsize=8)
        schedule.tick_params(labelsize=8)
        schedule.plot(statistics.sigmas, np.zeros(len(statistics.sigmas)), "|", color="#777777")
        schedule.set_xlim(1.02 * float(statistics.sigmas[0]), -0.02)
        schedule.set_ylim(-1, 1)
        self._now = schedule.plot([], [], "o", color=VERMILION, markersize=9)[0]
        self._text = schedule.set_title("σ = 0.000, step 000", fontsize=10)
        self._curves = []
        for panel, names in layout.panels(below, statistics):
            absmax = np.array([statistics.inputs[name].absmax for name in names])
            x = np.arange(len(names))
            low, high = absmax.min(axis=1), absmax.max(axis=1)
            panel.fill_between(x, low, high, color=_BAND, linewidth=0)
            if len(names) == 1:
                panel.vlines(x, low, high, color=_BAND, linewidth=6)
            before = panel.plot(x, absmax[:, 0], color=BLUE, alpha=0.35, linewidth=1)[0]
            curve = panel.plot(
                x, absmax[:, 0], "o-", color=BLUE, markersize=3.5, linewidth=1.6, zorder=3
            )[0]
            layout.range_axis(panel, float(absmax.min()), float(absmax.max()))
            layout.block_axis(panel, names)
            self._curves.append((curve, before, absmax))
        below.supylabel(MAX_LABEL, fontsize=8)
        below.supxlabel(
            "blue: now (pale: the step before); grey: smallest to largest of the schedule",
            fontsize=8,
        )
        # What does not move is laid out and drawn once, and frames only draw the rest over it.
        self._moving = [self._now, self._text]
        self._moving += [artist for curve, before, _ in self._curves for artist in (before, curve)]
        for artist in self._moving:
            artist.set_animated(True)
        self.figure.set_dpi(_PIXELS_AN_INCH)
        self._canvas = FigureCanvasAgg(self.figure)
        self._canvas.draw()
        self._still = self._canvas.copy_from_bbox(self.figure.bbox)

    def show(self, position: int) -> None:
        """Moves every curve to the measured step at `position`."""
        sigma = float(self._statistics.sigmas[position])
        self._now.set_data([sigma], [0])
        self._text.set_text(f"σ = {sigma:.3f}, step {self._statistics.steps[position]}")
        for curve, before, absmax in self._curves:
            curve.set_ydata(absmax[:, position])
            before.set_ydata(absmax[:, max(position - 1, 0)])

    def pixels(self) -> Image.Image:
        """The figure as it is now."""
        self._canvas.restore_region(self._still)
        for artist in self._moving:
            artist.axes.draw_artist(artist)
        return Image.fromarray(np.asarray(self._canvas.buffer_rgba())[..., :3].copy())


@styled()
def animate_drift(statistics: Statistics) -> bytes:
    """A GIF of the largest |x| of every input over the measured steps, repeated for ever.

    Equal statistics give equal bytes.
    """
    film = Film(statistics)
    frames = []
    for position in range(len(statistics.steps)):
        film.show(position)
        frames.append(film.pixels())
    # One palette for all frames, or colours would flicker.
    palette = _palette()
    indexed = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [_FRAME_MS] * (len(indexed) - 1) + [_LAST_MS]
    content = io.BytesIO()
    indexed[0].save(
        content, format="GIF", save_all=True, append_images=indexed[1:], duration=durations, loop=0
    )
    return content.getvalue()
