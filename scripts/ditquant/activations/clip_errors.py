"""Where ranges end, by measured error: what was measured, and the ends that are best.

A range that ends at a share r of the largest value clips a few values and rounds all others more
finely. `clip_search` measures for each input i, step t and number of bits b what that does,

    e[i, t, b, r] = sum_W sum_x |W (x_q - x)|^2.

A row of a configuration takes the largest r whose sum over the row's steps is at most a tenth above
the least: values far out are rare, a few images hardly show them, and a range that is a little too
long costs less than they do (benchmarks/results/activations.md). (`range: mse` predicts the
error instead, from one histogram of an input, which knows neither the weights behind it nor which
group of channels a value is in.)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..artifacts import load_metadata, load_tensors, save_tensors
from ..backend import mx, to_numpy
from ..errors import UserError
from .input_statistics import Statistics
from .segments import summed_by_row

KIND = "ditquant.clip_errors"
# Of the largest value.
SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4)
# How far above the least an error may be.
TOLERANCE = 0.1
# Bits -> input name -> (rows,) the share that each row takes.
Shares = Mapping[int, Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class ClipErrors:
    """What was measured of some images.

    Attributes:
        images: their names.
        sigmas: (steps,) where it was measured.
        bits: numbers of bits that were tried.
        errors: input name -> (steps, bits, len(SHARES)) float64, e of the module.
    """

    images: tuple[str, ...]
    sigmas: np.ndarray
    bits: tuple[int, ...]
    errors: dict[str, np.ndarray]


def save_clip_errors(path: str | Path, measured: ClipErrors) -> None:
    """Writes what one image gave."""
    tensors = {name: mx.array(one.astype(np.float32)) for name, one in measured.errors.items()}
    metadata = {
        "images": list(measured.images),
        "sigmas": measured.sigmas.tolist(),
        "bits": list(measured.bits),
        "shares": list(SHARES),
    }
    save_tensors(path, tensors, KIND, metadata)


def added(parts: Sequence[ClipErrors]) -> ClipErrors:
    """The sum over images."""
    (first, *_) = parts
    errors = {name: np.sum([part.errors[name] for part in parts], axis=0) for name in first.errors}
    images = tuple(image for part in parts for image in part.images)
    return ClipErrors(images, first.sigmas, first.bits, errors)


def load_clip_errors(paths: Sequence[str | Path]) -> ClipErrors:
    """The sum over images.

    Raises:
        UserError: images that were measured at other sigmas, or with other shares or bits.
    """
    parts, asked = [], set()
    for path in paths:
        metadata = load_metadata(path, KIND)
        asked.add(tuple(metadata[name] for name in ("sigmas", "bits", "shares")))
        errors = {
            name: to_numpy(one).astype(np.float64) for name, one in load_tensors(path, KIND).items()
        }
        images, sigmas, bits = (json.loads(metadata[name]) for name in ("images", "sigmas", "bits"))
        parts.append(ClipErrors(tuple(images), np.array(sigmas), tuple(bits), errors))
    if len(asked) != 1 or json.loads(metadata["shares"]) != list(SHARES):
        raise UserError(
            f"{paths[0]} and the files beside it were measured at different sigmas or for other "
            "ranges: delete the folder and run again."
        )
    return added(parts)


def errors_of_rows(
    statistics: Statistics, row_of: Sequence[int], measured: ClipErrors
) -> dict[int, dict[str, np.ndarray]]:
    """Bits -> input name -> (rows, len(SHARES)) errors, summed over the steps of each row.

    Args:
        row_of: row of each measured step of the statistics, see `fit.Fit`; a step
            counts with the errors at the nearest sigma.
    """
    summed = {
        name: summed_by_row(statistics.sigmas, row_of, measured.sigmas, errors)
        for name, errors in measured.errors.items()
    }
    return {
        bits: {name: errors[:, column] for name, errors in summed.items()}
        for column, bits in enumerate(measured.bits)
    }


def best_shares(errors: np.ndarray) -> np.ndarray:
    """(rows,) the largest of SHARES whose error is within TOLERANCE of the least.

    Args:
        errors: (rows, len(SHARES)).
    """
    within = errors <= (1 + TOLERANCE) * errors.min(axis=1, keepdims=True)
    # SHARES descend.
    return np.array(SHARES)[within.argmax(axis=1)]


def shares_of_inputs(errors: Mapping[int, Mapping[str, np.ndarray]]) -> Shares:
    """`best_shares` of each input at each number of bits, see `errors_of_rows`."""
    return {
        bits: {name: best_shares(one) for name, one in of_inputs.items()}
        for bits, of_inputs in errors.items()
    }
