"""All charts of an evaluation, with what the report says over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.figure import Figure

from .activation_quality_plots import plot_bits, plot_input_sqnr
from .evaluation_plots import (
    Document,
    plot_block_sqnr,
    plot_scores,
    plot_sigma_curves,
    plot_size,
    plot_sqnr_by_sigma,
)


@dataclass(frozen=True)
class Chart:
    """One chart of the evaluation.

    Attributes:
        title, note: over it in the report.
        draw: from the evaluations.
        wide: needs the page's whole width.
    """

    title: str
    note: str
    draw: Callable[[Sequence[Document]], Figure]
    wide: bool = False


CHARTS = {
    "errors": Chart(
        "Distance of the final latents.",
        "One dot a caption, the bar is the median.",
        partial(plot_scores, key="latent_relative_error"),
    ),
    "psnr": Chart(
        "Distance of the pictures.",
        "One dot a caption, the bar is the median.",
        partial(plot_scores, key="psnr"),
    ),
    "velocity": Chart(
        "What one step adds.",
        "Error of single steps at full precision's latents.",
        partial(plot_sigma_curves, key="velocity_errors"),
    ),
    "divergence": Chart(
        "How errors add up.",
        "Distance of the free-running latents, relative.",
        partial(plot_sigma_curves, key="divergence"),
    ),
    "blocks": Chart(
        "Signal to noise behind every block.",
        "Of the streams that leave it, at full precision's latents; the median over the steps.",
        plot_block_sqnr,
        wide=True,
    ),
    "block-sigma": Chart(
        "Signal to noise behind the last block.",
        "Of the image stream, along the schedule.",
        plot_sqnr_by_sigma,
    ),
    "bits": Chart(
        "Activation bits against quality.",
        "Averages over all values that linears read; weights alone have none quantized.",
        plot_bits,
    ),
    "inputs": Chart(
        "Signal to noise of what linears read.",
        "Of activation quantization alone, at full precision's latents; medians over blocks.",
        plot_input_sqnr,
        wide=True,
    ),
    "size": Chart(
        "Size against quality.",
        "Equal sizes stand beside each other; bars are 95 % intervals of the median.",
        plot_size,
    ),
}
