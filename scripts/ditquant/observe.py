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
from .histogram import count_bins, count_bins_of_each
from .sampling import predict


def measured_steps(num_steps: int, stride: int) -> list[int]:
    """Every stride-th step from the first: 0, stride, 2 stride, ..."""
    return list(range(0, num_steps, stride))


# Field -> one step's value on the host, of an input.
_Row = dict[str, np.ndarray]


@dataclass(frozen=True)
class _Measurement:
    """Lazy statistics of one array of rows (tokens, channels); sums are float32.

    Attributes:
        channel_min, channel_max, channel_mean, channel_square: (channels,) over tokens; the last is
            the mean of the square.
        token_absmax: (tokens,) each token's largest absolute value.
        histogram: (NUM_BINS,) int32.
    """

    channel_min: mx.array
    channel_max: mx.array
    channel_mean: mx.array
    channel_square: mx.array
    token_absmax: mx.array
    histogram: mx.array


def _measure_input(x: mx.array) -> _Measurement:
    rows = x.reshape(-1, x.shape[-1])
    wide = rows.astype(mx.float32)
    # Means along the first axis: MLX's CPU adds up whole rows there, and one value at a time where
    # an array becomes one number.
    return _Measurement(
        rows.min(axis=0).astype(mx.float32),
        rows.max(axis=0).astype(mx.float32),
        wide.mean(axis=0),
        mx.square(wide).mean(axis=0),
        mx.abs(rows).max(axis=1).astype(mx.float32),
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

    def evaluate(self) -> dict[str, _Row]:
        """Runs the graph once."""
        measurements = self.measurements.values()
        token_histograms = count_bins_of_each([measured.token_absmax for measured in measurements])
        mx.eval(token_histograms, [list(vars(measured).values()) for measured in measurements])
        return {
            name: _row(measured, token_histogram)
            for (name, measured), token_histogram in zip(
                self.measurements.items(), to_numpy(token_histograms), strict=True
            )
        }


def _row(measured: _Measurement, token_histogram: np.ndarray) -> _Row:
    """What is kept of one input at one step: the arguments of `of_one_image`, before rounding."""
    return {
        "channel_min": to_numpy(measured.channel_min),
        "channel_max": to_numpy(measured.channel_max),
        "sum_mean": to_numpy(measured.channel_mean),
        "sum_mean_square": to_numpy(measured.channel_square).mean(dtype=np.float64),
        "sum_token_absmax": to_numpy(measured.token_absmax).mean(dtype=np.float64),
        "histogram": to_numpy(measured.histogram),
        "token_histogram": token_histogram,
    }


def _stacked(name: str, rows: Sequence[_Row]) -> InputStatistics:
    stacked = {field: np.stack([row[field] for row in rows]) for field in rows[0]}
    if not all(np.isfinite(values).all() for values in stacked.values()):
        raise UserError(
            f"The inputs of {name} are not finite: the model overflows in this dtype. Set "
            "model.dtype to bfloat16 or float32."
        )
    exact = {
        field: to_fixed(values) if field.startswith("sum_") else values
        for field, values in stacked.items()
    }
    histograms = {
        field: exact.pop(field).astype(np.int64) for field in ("histogram", "token_histogram")
    }
    return of_one_image(**exact, **histograms)


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
