"""How far two results are apart: pictures, latents, velocities, and how sure that number is.

Everything computes in float64 on the host. Pictures are never subtracted as uint8: 10 - 20 wraps to
246 there, which made DiffusionKit's own PSNR report 28.3 dB where 19.2 dB is true.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Statistic = Callable[..., np.ndarray]

RESAMPLES = 2000


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of 8-bit pictures; infinite if they are equal.

    Args:
        image, reference: (H, W, 3), values 0..255 of any dtype.

    Raises:
        ValueError: the shapes differ.
    """
    _same_shape(image, reference)
    error = np.mean((image.astype(np.float64) - reference.astype(np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255.0**2 / error))


def max_absolute_difference(image: np.ndarray, reference: np.ndarray) -> int:
    """The largest difference of a channel of a pixel, in 8-bit levels."""
    _same_shape(image, reference)
    return int(np.max(np.abs(image.astype(np.int64) - reference.astype(np.int64))))


def _gaussian_window(size: int = 11, sigma: float = 1.5) -> np.ndarray:
    offsets = np.arange(size) - (size - 1) / 2
    window = np.exp(-(offsets**2) / (2 * sigma**2))
    return window / window.sum()


def _filtered(image: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Separable filter along the first two axes, only where the window fits entirely."""
    for axis in (0, 1):
        length = image.shape[axis] - len(window) + 1
        image = sum(
            weight * np.take(image, range(start, start + length), axis=axis)
            for start, weight in enumerate(window)
        )
    return image


def ssim(image: np.ndarray, reference: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004, IEEE TIP 13(4), eq. 13), mean over windows.

    Gaussian window 11 x 11 with sigma 1.5, K1 = 0.01, K2 = 0.03, L = 255; the three colour channels
    are compared one by one and averaged.

    Args:
        image, reference: (H, W, 3), values 0..255, at least 11 x 11.

    Raises:
        ValueError: the shapes differ or the picture is smaller than the window.
    """
    _same_shape(image, reference)
    window = _gaussian_window()
    if min(image.shape[:2]) < len(window):
        raise ValueError(f"a picture of {image.shape[:2]} is smaller than the SSIM window")
    x, y = image.astype(np.float64), reference.astype(np.float64)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y = _filtered(x, window), _filtered(y, window)
    variance_x = _filtered(x * x, window) - mean_x**2
    variance_y = _filtered(y * y, window) - mean_y**2
    covariance = _filtered(x * y, window) - mean_x * mean_y
    similarity = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    )
    return float(np.mean(similarity))


def relative_error(value: np.ndarray, reference: np.ndarray) -> float:
    """|value - reference|^2 / |reference|^2 over all elements.

    Of final latents this is the latent relative error, of velocities the velocity error.

    Raises:
        ValueError: the shapes differ, or the reference is all zeros.
    """
    _same_shape(value, reference)
    reference = reference.astype(np.float64)
    energy = float(np.sum(reference**2))
    if energy == 0:
        raise ValueError("the relative error to a reference of zeros is undefined")
    return float(np.sum((value.astype(np.float64) - reference) ** 2)) / energy


def decibels(signal: float, noise: float) -> float | None:
    """10 log10(signal / noise) of two energies; None where there is no noise."""
    return float(10 * np.log10(signal / noise)) if noise > 0 else None


def finite(value: float) -> float | None:
    """None for infinity (the PSNR of equal pictures), which JSON cannot hold."""
    return value if np.isfinite(value) else None


def _same_shape(value: np.ndarray, reference: np.ndarray) -> None:
    if value.shape != reference.shape:
        raise ValueError(f"shapes differ: {value.shape} and {reference.shape}")


# --------------------------------------------------------------------------------- intervals


def resamples(count: int, seed: int = 0, number: int = RESAMPLES) -> np.ndarray:
    """(number, count) indices drawn with replacement (Efron 1979).

    They depend on the count and the seed alone, so all variants are resampled alike: intervals of
    two variants over the same captions are paired.
    """
    return np.random.default_rng(seed).integers(0, count, size=(number, count))


def _interval(estimates: np.ndarray, level: float) -> tuple[float, float]:
    # "nearest" picks an estimate that occurred, so that infinite PSNRs are not interpolated.
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(estimates, tails, method="nearest")
    return float(low), float(high)


def bootstrap_interval(
    values: np.ndarray, statistic: Statistic, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic over captions.

    Args:
        values: (n,) one number a caption.
        statistic: `np.median` or `np.mean`; called with `axis=1`.
    """
    return _interval(statistic(values[resamples(len(values), seed)], axis=1), level)


def paired_ratio(
    values: np.ndarray,
    baseline: np.ndarray,
    statistic: Statistic = np.median,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float]:
    """statistic(values) / statistic(baseline) with its paired bootstrap interval (low, high).

    Args:
        values, baseline: (n,), entry i of both of the same caption and noise; positive.

    Raises:
        ValueError: the shapes differ.
    """
    _same_shape(values, baseline)
    rows = resamples(len(values), seed)
    ratios = statistic(values[rows], axis=1) / statistic(baseline[rows], axis=1)
    ratio = float(statistic(values, axis=0) / statistic(baseline, axis=0))
    return (ratio, *_interval(ratios, level))
