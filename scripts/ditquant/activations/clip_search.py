"""Tries shorter ranges on held-out images, and measures the errors of the linears' outputs.

With an input i quantized to b bits at sigma_t, and its range cut to a share r of the largest value,

    e[i, t, b, r] = sum_W sum_x |W (x_q - x)|^2

over the linears W that read it and the tokens x, along full-precision trajectories of images that
the ranges were not made of. One forward pass at full precision measures all inputs, bits and
shares. `clip_errors` chooses by it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..backend import mx, to_numpy
from ..finite import check_finite
from ..network.blocks import Linear, Network, tapped
from ..network.calibration import Trajectory
from ..network.sampling import predict
from .clip_errors import SHARES, ClipErrors
from .quant_config import QuantConfig
from .simulate import Simulation


def measure_clip_errors(
    model: Network,
    trajectory: Trajectory,
    image: str,
    steps: Sequence[int],
    configs: Mapping[int, Sequence[QuantConfig]],
    tick: Callable[[], None] = lambda: None,
) -> ClipErrors:
    """Errors of one image's inputs with ranges of every share.

    Args:
        model: MMDiT whose linears have weights that are not packed.
        image: its name.
        steps: of the trajectory.
        configs: bits -> configurations whose ranges end at each of SHARES.
        tick: called after each forward pass.

    Raises:
        UserError: an error is NaN or infinite.
    """
    simulations = [Simulation(config) for of_bits in configs.values() for config in of_bits]
    (first, *_) = next(iter(configs.values()))
    linears = model.linears
    weights = {linear.name: linear.module.weight for linear in linears}
    by_step: list[dict[str, np.ndarray]] = []
    for step in steps:
        sigma = float(trajectory.sigmas[step].item())
        for simulation in simulations:
            simulation(step, sigma)
        found: dict[str, list[mx.array]] = {}

        def see(linear: Linear, x: mx.array, found: dict[str, list[mx.array]] = found) -> mx.array:
            weight = weights[linear.name]
            changes = [(simulation.see(linear, x) - x) for simulation in simulations]
            errors = mx.stack([_energy(change @ weight.T) for change in map(_as_rows, changes)])
            found.setdefault(first.layers[linear.name].input, []).append(errors)
            # Computed before x is read: else all inputs would be kept until the end.
            (seen,) = mx.depends([x], [errors])
            return seen

        with tapped(linears, see):
            mx.eval(predict(model, *trajectory.at(step)), found)
        errors_of = {name: to_numpy(sum(errors)) for name, errors in found.items()}
        named = {f"the errors of {name}": errors for name, errors in errors_of.items()}
        check_finite(named, f"with shorter ranges at step {step + 1}")
        by_step.append(errors_of)
        tick()
    shape = len(steps), len(configs), len(SHARES)
    errors = {
        name: np.stack([found[name] for found in by_step]).astype(np.float64).reshape(shape)
        for name in by_step[0]
    }
    sigmas = to_numpy(trajectory.sigmas)[list(steps)].astype(np.float64)
    return ClipErrors((image,), sigmas, tuple(configs), errors)


def _as_rows(x: mx.array) -> mx.array:
    return x.reshape(-1, x.shape[-1])


def _energy(x: mx.array) -> mx.array:
    return mx.sum(mx.square(x.astype(mx.float32)))
