"""What the quantization of single inputs does to velocity and latents, as it was measured.

`velocity_sensitivity` measures, for each input i, step t and number of bits b, the mean squared
change of the guided velocity, and for each step the gain g[t] that later steps give an error. The
part of the final latents' error is

    g[t] (sigma_t - sigma_t')^2 mean |v_(i,b)(x_t) - v(x_t)|^2.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..artifacts import load_metadata, load_tensors, save_tensors
from ..backend import mx, to_numpy
from ..errors import UserError
from .input_statistics import Statistics
from .segments import summed_by_row

KIND = "ditquant.velocity_sensitivity"

# Input name -> (steps, bits) mean squared velocity errors.
VelocityErrors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Sensitivity:
    """What was measured, of an image or on average.

    Attributes:
        sigmas: (steps,) of the rows of `errors`.
        errors: see `velocity_sensitivity`.
        gains: sigma -> g; empty where errors count as they enter the latents.
    """

    sigmas: np.ndarray
    errors: VelocityErrors
    gains: dict[float, float] = field(default_factory=dict)


def save_sensitivity(path: str | Path, measured: Sensitivity, bits: Sequence[int]) -> None:
    """Writes what one image gave.

    Args:
        bits: of the errors' columns.
    """
    tensors = {name: mx.array(rows.astype(np.float32)) for name, rows in measured.errors.items()}
    metadata = {"sigmas": measured.sigmas.tolist(), "bits": list(bits)}
    gains = [list(pair) for pair in measured.gains.items()]
    save_tensors(path, tensors, KIND, {**metadata, "gains": gains})


def average(images: Sequence[Sensitivity]) -> Sensitivity:
    """Of images that were measured at the same sigmas; of gains, which vary manyfold, geometric."""
    (first, *_) = images
    errors = {name: np.mean([one.errors[name] for one in images], axis=0) for name in first.errors}
    gains = {
        sigma: float(np.exp(np.mean([np.log(max(one.gains[sigma], 1e-12)) for one in images])))
        for sigma in first.gains
    }
    return Sensitivity(first.sigmas, errors, gains)


def load_sensitivity(paths: Sequence[str | Path]) -> Sensitivity:
    """The average over images.

    Raises:
        UserError: images that were measured at other sigmas.
    """
    images = []
    for path in paths:
        metadata = load_metadata(path, KIND)
        errors = {
            name: to_numpy(rows).astype(np.float64)
            for name, rows in load_tensors(path, KIND).items()
        }
        gains = dict(json.loads(metadata["gains"]))
        images.append(Sensitivity(np.array(json.loads(metadata["sigmas"])), errors, gains))
    schedules = {(tuple(one.sigmas.tolist()), tuple(one.gains)) for one in images}
    if len(schedules) != 1:
        raise UserError(
            f"{paths[0]} and the files beside it were measured at different sigmas: delete the "
            "folder and run again."
        )
    return average(images)


def _gains_at(sigmas: np.ndarray, gains: Mapping[float, float]) -> np.ndarray:
    """g at any sigmas, its logarithm linear in between; 1 where none was measured."""
    if not gains:
        return np.ones(len(sigmas))
    known = sorted(gains)
    logarithms = np.log([max(gains[sigma], 1e-12) for sigma in known])
    return np.asarray(np.exp(np.interp(sigmas, known, logarithms)))


def latent_errors(
    statistics: Statistics, row_of: Sequence[int], measured: Sensitivity
) -> dict[str, np.ndarray]:
    """g[t] e[i, t, b] of the module, summed over the measured steps of each row.

    Args:
        row_of: row of each measured step of the statistics, see `fit.Fit`.
        measured: a step of the statistics takes the velocity error at the nearest of its sigmas.

    Returns:
        Input name -> (rows, bits).
    """
    own = statistics.sigmas.astype(np.float64)
    strides = own - np.append(own[1:], 0.0)
    weights = strides**2 * _gains_at(own, measured.gains)
    return {
        name: summed_by_row(own, row_of, measured.sigmas, errors, weights)
        for name, errors in measured.errors.items()
    }
