"""Measured sensitivity: how the velocity changes if a single input is quantized.

With one input i quantized to b bits at sigma_t, and everything else at full precision, the guided
velocity moves from v(x_t) to v_(i,b)(x_t), and an Euler step carries

    e[i, t, b] = (sigma_t - sigma_t')^2 mean |v_(i,b)(x_t) - v(x_t)|^2

into the latents. Errors of different inputs and steps are hardly related, so their sum over all
inputs and steps is about what they make of the latents. Unlike a linear's output error
(`sensitivity.input_gains`) it knows what the network makes of it: that late blocks and the image
stream count more. One forward pass for each input, number of bits and step: few steps of one or two
images are enough.

Later steps act on that error. On the demo model one at sigma 1 grows twenty- to seventyfold in
energy until the picture is done, one at 0.4 falls to an eighth, and nothing mends those of the last
steps. The gain of a step is measured by following the error that all inputs make there together,

    g[t] = |z_d - z|^2 / |d|^2,   d = (sigma_t' - sigma_t) (v_b(x_t) - v(x_t)),

where z_d are the final latents from x_t' + d on: one forward pass for each later step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..backend import mx, to_numpy
from ..finite import check_finite
from ..network.blocks import Network
from ..network.calibration import Trajectory
from ..network.sampling import velocity_at
from .quant_config import QuantConfig
from .simulate import simulated_activations
from .velocity_errors import Sensitivity, VelocityErrors

# The gain changes fast before the end: it is measured so many steps before it, too.
_BEFORE_THE_END = (2, 3, 5, 9)


def num_passes(configs: Mapping[int, QuantConfig], steps: Sequence[int]) -> int:
    """Forward passes of `velocity_errors`."""
    (first, *_) = configs.values()
    inputs = {layer.input for layer in first.layers.values()}
    return len(steps) * (1 + len(inputs) * len(configs))


def velocity_errors(
    model: Network,
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
        where = f"at step {step + 1}"
        check_finite({"the full-precision velocity": exact}, where)
        tick()
        sigma = float(trajectory.sigmas[step].item())
        for name in inputs:
            for column, config in enumerate(configs.values()):
                with simulated_activations(model, config, only=[name]) as before_step:
                    before_step(step, sigma)
                    error = mx.mean(mx.square(velocity() - exact))
                    check_finite({f"the velocity with {name} quantized": error}, where)
                errors[name][row, column] = error.item()
                tick()
    return errors


def gain_steps(steps: Sequence[int], num_steps: int) -> list[int]:
    """The steps whose gain is measured: those of the errors, and some before the end."""
    late = {num_steps - before for before in _BEFORE_THE_END if before <= num_steps}
    return sorted({*steps, *late} - {num_steps - 1})


def num_gain_passes(steps: Sequence[int], num_steps: int) -> int:
    """Forward passes of `error_gains`."""
    return sum(2 + num_steps - 1 - step for step in gain_steps(steps, num_steps))


def error_gains(
    model: Network,
    trajectory: Trajectory,
    steps: Sequence[int],
    config: QuantConfig,
    tick: Callable[[], None] = lambda: None,
) -> dict[float, float]:
    """sigma -> g, see the module's docstring, of `gain_steps` and of the last step, where it is 1.

    Args:
        config: of few bits, whose error is far above rounding.
    """
    gains = {}
    for step in gain_steps(steps, trajectory.num_steps):
        exact = velocity_at(model, *trajectory.at(step)).astype(mx.float32)
        sigma = float(trajectory.sigmas[step].item())
        with simulated_activations(model, config) as before_step:
            before_step(step, sigma)
            quantized = velocity_at(model, *trajectory.at(step)).astype(mx.float32)
            mx.eval(exact, quantized)
        tick()
        tick()
        error = (quantized - exact) * (trajectory.sigmas[step + 1] - trajectory.sigmas[step])
        before = trajectory.latents[step + 1 : step + 2].astype(mx.float32)
        # With the error and without it, since the model need not be the one that drew the image.
        both = mx.concatenate([before + error, before])
        for later in range(step + 1, trajectory.num_steps):
            _, at, timestep, tokens, pooled, cfg_weight = trajectory.at(later)
            tokens, pooled = (mx.repeat(rows, 2, axis=0) for rows in (tokens, pooled))
            velocity = velocity_at(model, both, at, timestep, tokens, pooled, cfg_weight)
            both = both + velocity * (trajectory.sigmas[later + 1] - at)
            mx.eval(both)
            tick()
        moved = mx.mean(mx.square(both[:1] - both[1:]))
        gain = moved / mx.mean(mx.square(error))
        check_finite({"the gain of an error": gain}, f"from step {step + 1} to the end")
        gains[sigma] = gain.item()
    return {**gains, float(trajectory.sigmas[-2].item()): 1.0}


def total_passes(
    configs: Mapping[int, QuantConfig], steps: Sequence[int], num_steps: int, follows: bool
) -> int:
    """Forward passes of `measure_sensitivity`."""
    return num_passes(configs, steps) + (num_gain_passes(steps, num_steps) if follows else 0)


def measure_sensitivity(
    model: Network,
    trajectory: Trajectory,
    steps: Sequence[int],
    configs: Mapping[int, QuantConfig],
    follows: bool,
    tick: Callable[[], None] = lambda: None,
) -> Sensitivity:
    """Of one image; see `velocity_errors`.

    Args:
        follows: whether errors are followed to the final latents, see `error_gains`.
    """
    errors = velocity_errors(model, trajectory, steps, configs, tick)
    sigmas = to_numpy(trajectory.sigmas)[list(steps)].astype(np.float64)
    coarsest = configs[min(configs)]
    gains = error_gains(model, trajectory, steps, coarsest, tick) if follows else {}
    return Sensitivity(sigmas, errors, gains)
