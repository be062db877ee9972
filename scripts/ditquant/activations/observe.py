"""Measures the inputs of every linear along a calibration trajectory.

The statistics are part of the forward pass's graph and are evaluated once with it: no layer waits
for the host. The model runs at full precision on the stored latents, so that a step's measurement
needs none of the steps before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from ..backend import backend_name, mx, to_numpy
from ..finite import not_finite
from ..kernels.cuda import measuring as measuring_cuda
from ..network.blocks import Linear, Network, tapped
from ..network.calibration import Trajectory
from ..network.sampling import predict
from . import measuring
from .input_statistics import InputStatistics, Statistics, of_one_image, to_fixed


def backend_measuring() -> ModuleType:
    """`measuring`, or what has the same functions for this backend."""
    return measuring_cuda if backend_name() == "cuda" else measuring


class _Recorder:
    """Notes the input of each linear once per forward pass; a further pass takes the place of the
    one before.

    q, k and v are called with the very same array, one after the other: that is how a shared input
    is recognised, whatever the model.
    """

    def __init__(self) -> None:
        self.input_of: dict[str, str] = {}
        self._measuring = backend_measuring()
        self._measurements: dict[str, Any] = {}
        self._name = ""
        self._last: mx.array | None = None
        self._measured: mx.array | None = None

    def see(self, linear: Linear, x: mx.array) -> mx.array:
        """Returns x, in a graph where it has been measured before it can be read: left to itself,
        MLX may measure all inputs at the end and keep them until then."""
        if self._measured is None or self._last is not x:
            measurement = self._measuring.measure(x)
            self._measurements[linear.name] = measurement
            self._name, self._last = linear.name, x
            self._measured = mx.depends(x, measurement.arrays)
        self.input_of[linear.name] = self._name
        return self._measured

    def evaluate(self) -> list[np.ndarray]:
        """Runs the graph once; the numbers of a forward pass, in the backend's own form."""
        found: list[np.ndarray] = self._measuring.evaluated(list(self._measurements.values()))
        return found

    def fields(self, passes: list[list[np.ndarray]]) -> dict[str, dict[str, np.ndarray]]:
        """Input name -> field -> (S, values), from what `evaluate` returned for S passes."""
        measurements = list(self._measurements.values())
        found = self._measuring.fields_of(measurements, passes)
        return dict(zip(self._measurements, found, strict=True))


def _input_statistics(
    name: str, values: Mapping[str, np.ndarray], steps: Sequence[int]
) -> InputStatistics:
    """Statistics of an input from the fields of its measurements, each (S, ...)."""
    # A value that is not finite leaves no finite sum of squares.
    for field in ("square_sum", "channel_min", "channel_max"):
        is_wrong = ~np.isfinite(values[field]).all(axis=1)
        if is_wrong.any():
            raise not_finite(f"the inputs of {name}", f"at step {steps[is_wrong.argmax()] + 1}")
    histogram = values["histogram"].astype(np.int64)
    token_histogram = values["token_histogram"].astype(np.int64)
    # Values that sums cannot hold are told before their squares are.
    to_fixed(np.stack([values["channel_min"], values["channel_max"]]))
    square_sum = values["square_sum"][:, 0].astype(np.float64)
    return of_one_image(
        channel_min=values["channel_min"],
        channel_max=values["channel_max"],
        sum_mean_square=to_fixed(square_sum / histogram.sum(axis=1)),
        histogram=histogram,
        token_histogram=token_histogram,
    )


def measure_image(
    model: Network,
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
    linears = model.linears
    passes = []
    recorder = _Recorder()
    with tapped(linears, recorder.see):
        for step in steps:
            predict(model, *trajectory.at(step))
            passes.append(recorder.evaluate())
            tick()
    inputs = recorder.fields(passes)
    return Statistics(
        model=model_name,
        images=(image,),
        steps=tuple(steps),
        sigmas=to_numpy(trajectory.sigmas)[list(steps)],
        input_of={linear.name: recorder.input_of[linear.name] for linear in linears},
        post_gelu=frozenset(linear.name for linear in linears if linear.is_post_gelu),
        inputs={
            linear.name: _input_statistics(linear.name, inputs[linear.name], steps)
            for linear in linears
            if linear.name in inputs
        },
    )
