"""Measures the inputs of every linear along a calibration trajectory.

The statistics are part of the forward pass's graph and are evaluated once with it: no layer waits
for the host. The model runs at full precision on the stored latents, so that a step's measurement
needs none of the steps before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .activation_statistics import InputStatistics, Statistics, of_one_image, to_fixed
from .backend import compiled, is_accelerated, mx, nn, to_numpy
from .blocks import Linear, all_linears, tapped
from .calibration import Trajectory
from .errors import UserError
from .histogram import bin_numbers, count_numbers, count_numbers_of_parts
from .sampling import predict


def measured_steps(num_steps: int, stride: int) -> list[int]:
    """Every stride-th step from the first: 0, stride, 2 stride, ..."""
    return list(range(0, num_steps, stride))


class _Measurement(NamedTuple):
    """Lazy statistics of one array of rows (tokens, channels).

    Attributes:
        channel_min, channel_max, channel_sum: (channels,) float32 over tokens.
        square_sum: (1,) float32, over all values.
        token_bin: (tokens,) uint16, the bin of each token's largest |x|.
        histogram: (NUM_BINS,) int32 counts of |x|.
    """

    channel_min: mx.array
    channel_max: mx.array
    channel_sum: mx.array
    square_sum: mx.array
    token_bin: mx.array
    histogram: mx.array


def sum_of_squares(x: mx.array) -> mx.array:
    """(1,) float32. On the CPU a product of BLAS, which writes no squares down; a GPU's products
    round float32."""
    if is_accelerated():
        return mx.square(x).sum(keepdims=True).reshape(1)
    return mx.inner(x.reshape(1, -1), x.reshape(1, -1)).reshape(1)


def measure_array(x: mx.array) -> tuple[mx.array, ...]:
    """The fields of `_Measurement`, in their order, of an array (..., channels)."""
    rows = x.reshape(-1, x.shape[-1])
    wide = rows.astype(mx.float32)
    # Bin numbers are in the order of |x|: a token's largest value has its largest bin.
    numbers = bin_numbers(rows)
    return (
        rows.min(axis=0).astype(mx.float32),
        rows.max(axis=0).astype(mx.float32),
        wide.sum(axis=0),
        sum_of_squares(wide),
        numbers.max(axis=1),
        count_numbers(numbers),
    )


# A few shapes occur, so a few graphs are made; each forward pass then only repeats them.
_compiled_measure = compiled(measure_array)


class _Recorder:
    """Notes the input of each linear once per forward pass; a further pass takes the place of the
    one before.

    q, k and v are called with the very same array, one after the other: that is how a shared input
    is recognised, whatever the model.
    """

    def __init__(self) -> None:
        self.input_of: dict[str, str] = {}
        self.measurements: dict[str, _Measurement] = {}
        self._name = ""
        self._last: mx.array | None = None
        self._measured: mx.array | None = None

    def see(self, linear: Linear, x: mx.array) -> mx.array:
        """Returns x, in a graph where it has been measured before it can be read: left to itself,
        MLX may measure all inputs at the end and keep them until then."""
        if self._measured is None or self._last is not x:
            measurement = _Measurement(*_compiled_measure(x))
            self.measurements[linear.name] = measurement
            self._name, self._last, self._measured = (
                linear.name,
                x,
                mx.depends(x, list(measurement)),
            )
        self.input_of[linear.name] = self._name
        return self._measured

    def evaluate(self) -> dict[str, np.ndarray]:
        """Runs the graph once; field -> the values of all inputs, one after the other."""
        columns = self._columns()
        token_bins = columns.pop("token_bin")
        token_histogram = count_numbers_of_parts(
            mx.concatenate(token_bins), [array.size for array in token_bins]
        )
        mx.eval(token_histogram, columns)
        # Joined on the host, which is faster there than many small copies on the device.
        rows = {
            field: np.concatenate([to_numpy(array) for array in arrays])
            for field, arrays in columns.items()
        }
        return {**rows, "token_histogram": to_numpy(token_histogram).reshape(-1)}

    def split(self, rows: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
        """Field -> (S, values of all inputs)  ->  input name -> field -> (S, its values)."""
        sizes = self._sizes()
        parts = {
            field: np.split(values, np.cumsum(sizes[field])[:-1], axis=1)
            for field, values in rows.items()
        }
        return {
            name: {field: values[number] for field, values in parts.items()}
            for number, name in enumerate(self.measurements)
        }

    def _columns(self) -> dict[str, list[mx.array]]:
        """Field -> the arrays of all inputs."""
        fields = zip(*self.measurements.values(), strict=True)
        return {
            name: list(arrays) for name, arrays in zip(_Measurement._fields, fields, strict=True)
        }

    def _sizes(self) -> dict[str, list[int]]:
        """Field -> how many values each input has."""
        sizes = {name: [array.size for array in arrays] for name, arrays in self._columns().items()}
        return {**sizes, "token_histogram": sizes["histogram"]}


def _input_statistics(name: str, values: Mapping[str, np.ndarray]) -> InputStatistics:
    """Statistics of an input from the fields of its measurements, each (S, ...)."""
    # A value that is not finite leaves no finite sum of squares.
    if not np.isfinite(values["square_sum"]).all():
        raise UserError(
            f"The inputs of {name} are not finite: the model overflows in this dtype. Set "
            "model.dtype to bfloat16 or float32."
        )
    histogram = values["histogram"].astype(np.int64)
    token_histogram = values["token_histogram"].astype(np.int64)
    square_sum = values["square_sum"][:, 0].astype(np.float64)
    tokens = token_histogram.sum(axis=1, keepdims=True)
    return of_one_image(
        channel_min=values["channel_min"],
        channel_max=values["channel_max"],
        sum_mean=to_fixed(values["channel_sum"].astype(np.float64) / tokens),
        sum_mean_square=to_fixed(square_sum / histogram.sum(axis=1)),
        histogram=histogram,
        token_histogram=token_histogram,
    )


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
    rows = []
    recorder = _Recorder()
    with tapped(linears, recorder.see):
        for step in steps:
            predict(model, *trajectory.at(step))
            rows.append(recorder.evaluate())
            tick()
    inputs = recorder.split({field: np.stack([row[field] for row in rows]) for field in rows[0]})
    return Statistics(
        model=model_name,
        images=(image,),
        steps=tuple(steps),
        sigmas=to_numpy(trajectory.sigmas)[list(steps)],
        input_of={linear.name: recorder.input_of[linear.name] for linear in linears},
        post_gelu=frozenset(linear.name for linear in linears if linear.is_post_gelu),
        inputs={
            linear.name: _input_statistics(linear.name, inputs[linear.name])
            for linear in linears
            if linear.name in inputs
        },
    )
