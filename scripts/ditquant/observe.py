"""Measures the inputs of every linear along a calibration trajectory.

The statistics are part of the forward pass's graph and are evaluated once with it: no layer waits
for the host. The model runs at full precision on the stored latents, so that a step's measurement
needs none of the steps before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .activation_statistics import InputStatistics, Statistics, of_one_image, to_fixed
from .backend import mx, nn, to_numpy
from .blocks import Linear, all_linears, tapped
from .calibration import Trajectory
from .errors import UserError
from .histogram import count_bins
from .sampling import predict


def measured_steps(num_steps: int, stride: int) -> list[int]:
    """Every stride-th step from the first: 0, stride, 2 stride, ..."""
    return list(range(0, num_steps, stride))


@dataclass(frozen=True)
class _Measurement:
    """Lazy statistics of one array: channel_min and channel_max (channels,), mean_square (), and
    histogram (NUM_BINS,)."""

    channel_min: mx.array
    channel_max: mx.array
    mean_square: mx.array
    histogram: mx.array


def _measure_input(x: mx.array) -> _Measurement:
    rows = x.reshape(-1, x.shape[-1])
    return _Measurement(
        rows.min(axis=0).astype(mx.float32),
        rows.max(axis=0).astype(mx.float32),
        mx.mean(mx.square(rows.astype(mx.float32))),
        count_bins(rows),
    )


class _Recorder:
    """Notes the input of each linear once per forward pass.

    q, k and v are called with the very same array, one after the other: that is how a shared input
    is recognised, whatever the model.
    """

    def __init__(self) -> None:
        self.input_of: dict[str, str] = {}
        self.measurements: dict[str, _Measurement] = {}
        self._last: tuple[mx.array, str] | None = None

    def see(self, linear: Linear, x: mx.array) -> None:
        if self._last is not None and self._last[0] is x:
            self.input_of[linear.name] = self._last[1]
            return
        self.input_of[linear.name] = linear.name
        self.measurements[linear.name] = _measure_input(x)
        self._last = (x, linear.name)

    def evaluate(self) -> dict[str, dict[str, np.ndarray]]:
        """Runs the graph once; input name -> field -> host array."""
        mx.eval([list(vars(measured).values()) for measured in self.measurements.values()])
        return {
            name: {field: to_numpy(value) for field, value in vars(measured).items()}
            for name, measured in self.measurements.items()
        }


def _stacked(name: str, rows: Sequence[dict[str, np.ndarray]]) -> InputStatistics:
    channel_min, channel_max, mean_square, histogram = (
        np.stack([row[field] for row in rows])
        for field in ("channel_min", "channel_max", "mean_square", "histogram")
    )
    if not all(np.isfinite(values).all() for values in (channel_min, channel_max, mean_square)):
        raise UserError(
            f"The inputs of {name} are not finite: the model overflows in this dtype. Set "
            "model.dtype to bfloat16 or float32."
        )
    return of_one_image(channel_min, channel_max, to_fixed(mean_square), histogram.astype(np.int64))


def measure_image(
    model: nn.Module,
    trajectory: Trajectory,
    steps: Sequence[int],
    model_name: str,
    image: str,
    tick: Callable[[], None] = lambda: None,
) -> Statistics:
    """Statistics of every linear input along one image's trajectory.

    Args:
        model: full-precision MMDiT.
        steps: which steps to measure; both rows of a guided pair count.
        model_name, image: recorded with the statistics.
        tick: called after each step.

    Raises:
        UserError: an input that is not finite.
    """
    linears = all_linears(model)
    conditioning = trajectory.conditioning
    rows = []
    for step in steps:
        recorder = _Recorder()
        with tapped(linears, recorder.see):
            predict(
                model,
                trajectory.latents[step : step + 1],
                trajectory.sigmas[step],
                trajectory.timesteps[step],
                conditioning.tokens,
                conditioning.pooled,
                trajectory.cfg_weight,
            )
        rows.append(recorder.evaluate())
        tick()
    return Statistics(
        model=model_name,
        images=(image,),
        steps=tuple(steps),
        sigmas=to_numpy(trajectory.sigmas)[list(steps)],
        input_of={linear.name: recorder.input_of[linear.name] for linear in linears},
        post_gelu=frozenset(linear.name for linear in linears if linear.is_post_gelu),
        inputs={
            linear.name: _stacked(linear.name, [row[linear.name] for row in rows])
            for linear in linears
            if linear.name in rows[0]
        },
    )
