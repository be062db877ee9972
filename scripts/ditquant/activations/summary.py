"""Activation statistics for readers: by layer and step, and how they change along sigma."""

from __future__ import annotations

from typing import Any

import numpy as np

from .histogram import quantile
from .input_statistics import InputStatistics, Statistics
from .intervals import shift_errors

# Stands for 0 where a layer without inputs would be divided by.
TINY = 1e-12


def rounded(values: np.ndarray) -> list[float]:
    """Six significant digits: enough to read, short enough to look through."""
    return [float(f"{value:.6g}") for value in np.asarray(values, dtype=np.float64).ravel()]


def float32_list(values: np.ndarray) -> list[float]:
    """Values that are exact in float32, written as short as they can be read back."""
    return [float(f"{value:.9g}") for value in np.asarray(values, dtype=np.float32)]


def measurement_of(statistics: Statistics) -> dict[str, Any]:
    """Which model, images and steps were measured; part of every document made from statistics."""
    return {
        "model": statistics.model,
        "images": list(statistics.images),
        "steps": list(statistics.steps),
        "sigmas": [float(f"{sigma:.9g}") for sigma in statistics.sigmas],
    }


def _token_summary(measured: InputStatistics) -> dict[str, list[float]]:
    """One number a step of the tokens' largest |x|, see `layer_summary`."""
    largest = measured.absmax.astype(np.float64)
    # A bin's upper end may lie beyond the largest value in it.
    median, p99 = (
        np.minimum(quantile(measured.token_histogram, share), largest) for share in (0.5, 0.99)
    )
    return {
        "median": rounded(median),
        "p99": rounded(p99),
        "largest": rounded(largest),
        "gain_bits": rounded(np.log2(np.maximum(largest, TINY) / np.maximum(median, TINY))),
    }


def layer_summary(statistics: Statistics) -> dict[str, Any]:
    """The document `ditquant.layer_statistics`: one list an entry, one number a step.

    absmax, min and max are over all images; mean_absmax averages each image's absmax;
    mean_channel_absmax averages over images and then over channels; p99, p999 and p9999 are the
    99, 99.9 and 99.99 % points of |x| and rms the root of the mean square.

    token_absmax tells what scales of their own could save tokens: of the tokens' largest |x|, the
    median, the 99 % point and the largest, and as gain_bits the bits that the median token loses
    under one scale for all, log2(largest / median).
    """
    layers = {}
    for name in statistics.input_of:
        measured = statistics.of(name)
        channel_absmax = np.maximum(
            np.abs(measured.average(measured.sum_channel_min)),
            np.abs(measured.average(measured.sum_channel_max)),
        )
        layers[name] = {
            "input": statistics.input_of[name],
            "post_gelu": name in statistics.post_gelu,
            "channels": int(measured.channel_max.shape[1]),
            "values": int(measured.count.sum()),
            "absmax": rounded(measured.absmax),
            "mean_absmax": rounded(measured.average(measured.sum_absmax)),
            "mean_channel_absmax": rounded(channel_absmax.mean(axis=1)),
            "p99": rounded(quantile(measured.histogram, 0.99)),
            "p999": rounded(quantile(measured.histogram, 0.999)),
            "p9999": rounded(quantile(measured.histogram, 0.9999)),
            "rms": rounded(np.sqrt(measured.average(measured.sum_mean_square))),
            "min": rounded(measured.minimum),
            "max": rounded(measured.maximum),
            "token_absmax": _token_summary(measured),
        }
    return {**measurement_of(statistics), "layers": layers}


def _shift_gain(statistics: Statistics) -> float | None:
    """Predicted squared error of post-GELU inputs with a shift over that without one.

    At 8 bits with a scale for each step, of the better of the shifts `middle` and `gelu`; the
    median over layers and steps. None where no linear reads such an input.
    """
    ratios = []
    for name in sorted(statistics.post_gelu):
        errors = shift_errors(statistics.of(name), "absmax", 8)
        shifted = np.minimum(errors["middle"], errors["gelu"])
        ratios.append(shifted / np.maximum(errors["zero"], TINY))
    return rounded(np.median(ratios))[0] if ratios else None


def temporal_analysis(statistics: Statistics) -> dict[str, Any]:
    """The document `ditquant.layer_temporal_analysis`: how each layer's absmax moves over steps.

    drift is the largest absmax over the smallest; variability is the standard deviation over the
    mean (coefficient of variation). A layer with a large drift wastes codes under a static scale.
    """
    layers: dict[str, dict[str, Any]] = {}
    for name in statistics.input_of:
        absmax = statistics.of(name).absmax.astype(np.float64)
        largest, smallest = int(absmax.argmax()), int(absmax.argmin())
        layers[name] = {
            "post_gelu": name in statistics.post_gelu,
            "absmax_range": rounded(absmax[[smallest, largest]]),
            "drift": rounded(absmax[largest] / max(absmax[smallest], TINY))[0],
            "variability": rounded(absmax.std() / max(absmax.mean(), TINY))[0],
            "step_of_max": statistics.steps[largest],
            "sigma_of_max": rounded(statistics.sigmas[largest])[0],
            "step_of_min": statistics.steps[smallest],
        }
    by_drift = sorted(layers, key=lambda name: (-layers[name]["drift"], name))
    drifts = np.array([layers[name]["drift"] for name in by_drift])
    return {
        **measurement_of(statistics),
        "summary": {
            "layers": len(layers),
            "median_drift": rounded(np.median(drifts))[0],
            "largest_drift": rounded(drifts[:1])[0],
            "most_variable": by_drift[:10],
            "post_gelu_shift_error": _shift_gain(statistics),
        },
        "layers": layers,
    }
