"""Measured sensitivity: what the quantization of one input alone does to the velocity.

With one input i quantized to b bits at sigma_t, and everything else at full precision, the guided
velocity moves from v(x_t) to v_(i,b)(x_t), and an Euler step carries

    e[i, t, b] = (sigma_t - sigma_t')^2 mean |v_(i,b)(x_t) - v(x_t)|^2

into the latents. Errors of different inputs and steps are hardly related, so their sum over all
inputs and steps is about what the final latents' error will be, before later steps act on it.
Unlike a linear's output error (`sensitivity.input_gains`) it knows what the network makes of it:
that late blocks and the image stream count more, and that nothing mends the errors of last steps.

One forward pass for each input, number of bits and step: few steps of one or two images are enough.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from .activation_statistics import Statistics
from .artifacts import load_metadata, load_tensors, save_tensors
from .backend import mx, nn, to_numpy
from .calibration import Trajectory
from .errors import UserError
from .quant_config import QuantConfig
from .sampling import velocity_at
from .simulate import simulated_activations

KIND = "ditquant.velocity_sensitivity"

# Input name -> (steps, bits) mean squared velocity errors.
VelocityErrors = dict[str, np.ndarray]


def num_passes(configs: Mapping[int, QuantConfig], steps: Sequence[int]) -> int:
    """Forward passes of `velocity_errors`."""
    (first, *_) = configs.values()
    inputs = {layer.input for layer in first.layers.values()}
    return len(steps) * (1 + len(inputs) * len(configs))


def velocity_errors(
    model: nn.Module,
    trajectory: Trajectory,
    steps: Sequence[int],
    configs: Mapping[int, QuantConfig],
    tick: Callable[[], None] = lambda: None,
) -> VelocityErrors:
    """mean |v_(i,b)(x_t) - v(x_t)|^2 of every input i, float64.

    Args:
        model: full-precision MMDiT.
        steps: indices of t along the trajectory.
        configs: number of bits -> a configuration of that one tier.
        tick: called after each forward pass.
    """
    (first, *_) = configs.values()
    inputs = list(dict.fromkeys(layer.input for layer in first.layers.values()))
    errors = {name: np.zeros((len(steps), len(configs))) for name in inputs}
    for row, step in enumerate(steps):

        def velocity(step: int = step) -> mx.array:
            return velocity_at(model, *trajectory.at(step)).astype(mx.float32)

        exact = velocity()
        mx.eval(exact)
        tick()
        sigma = float(trajectory.sigmas[step].item())
        for name in inputs:
            for column, config in enumerate(configs.values()):
                with simulated_activations(model, config, only=[name]) as before_step:
                    before_step(step, sigma)
                    error = mx.mean(mx.square(velocity() - exact))
                    mx.eval(error)
                errors[name][row, column] = error.item()
                tick()
    return errors


def save_velocity_errors(
    path: str | Path, errors: VelocityErrors, sigmas: Sequence[float], bits: Sequence[int]
) -> None:
    """Writes what one image gave.

    Args:
        sigmas: of the steps.
        bits: of the columns.
    """
    tensors = {name: mx.array(rows.astype(np.float32)) for name, rows in errors.items()}
    save_tensors(path, tensors, {"kind": KIND, "sigmas": list(sigmas), "bits": list(bits)})


def load_velocity_errors(paths: Sequence[str | Path]) -> tuple[np.ndarray, VelocityErrors]:
    """(steps,) sigmas and the average over images, in the order of the paths.

    Raises:
        UserError: images that were measured at other sigmas.
    """
    found = [load_tensors(path) for path in paths]
    schedules = [load_metadata(path)["sigmas"] for path in paths]
    if len(set(schedules)) != 1:
        raise UserError(
            f"{paths[0]} and the files beside it were measured at different sigmas: delete the "
            "folder and run again."
        )
    sigmas = np.array(json.loads(schedules[0]))
    names = list(found[0])
    return sigmas, {
        name: np.mean([to_numpy(part[name]).astype(np.float64) for part in found], axis=0)
        for name in names
    }


def latent_errors(
    statistics: Statistics, row_of: Sequence[int], sigmas: np.ndarray, errors: VelocityErrors
) -> dict[str, np.ndarray]:
    """e[i, t, b] of the module, summed over the measured steps of each row.

    Args:
        row_of: row of each measured step of the statistics, see `ranges.rows_of_steps`.
        sigmas, errors: of `load_velocity_errors`; a step of the statistics takes the velocity error
            at the nearest of these sigmas.

    Returns:
        Input name -> (rows, bits).
    """
    own = statistics.sigmas.astype(np.float64)
    strides = own - np.append(own[1:], 0.0)
    nearest = np.abs(own[:, None] - sigmas).argmin(axis=1)
    rows = np.asarray(row_of)
    found = {}
    for name, measured in errors.items():
        by_step = strides[:, None] ** 2 * measured[nearest]
        summed = np.zeros((rows.max() + 1, measured.shape[1]))
        np.add.at(summed, rows, by_step)
        found[name] = summed
    return found
