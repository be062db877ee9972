"""Quantizing activations and dequantizing them at once, in few passes over the tensor.

Computed in float32 and returned in the dtype of x. Scales and limits are arrays, so that one kernel
serves every layer, sigma and tier.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from ..backend import backend_name, compiled, device_arrays, mx
from ..kernels.cuda.fake_quantization import CudaQuantizer
from .granularity import Granularity
from .intervals import SMALLEST_RANGE
from .quant_params import StackedParams, code_range


def _fake_quantize(
    x: mx.array, scale: mx.array, shift: mx.array, low: mx.array, high: mx.array
) -> mx.array:
    codes = mx.clip(mx.round((x.astype(mx.float32) - shift) / scale), low, high)
    return (codes * scale + shift).astype(x.dtype)


def _dynamic_quantize(
    x: mx.array, shift: mx.array, low: mx.array, high: mx.array, axes: tuple[int, ...]
) -> mx.array:
    centered = x.astype(mx.float32) - shift
    # Axis by axis, the last first: a GPU has few threads for one reduction over a whole tensor.
    largest = mx.abs(centered)
    for axis in reversed(axes):
        largest = largest.max(axis=axis, keepdims=True)
    scale = mx.maximum(largest, SMALLEST_RANGE) / high
    return (mx.clip(mx.round(centered / scale), low, high) * scale + shift).astype(x.dtype)


_compiled_fake_quantize = compiled(_fake_quantize)


@cache
def _portable_kernel(over: str | None, channel_group: int | None) -> Callable[..., mx.array]:
    if over is None:
        return _compiled_fake_quantize

    def kernel(x: mx.array, shift: mx.array, low: mx.array, high: mx.array) -> mx.array:
        # Not the first axis: a picture must not depend on which others are drawn with it.
        tokens = range(1, x.ndim - 1) if over == "tensor" else ()
        parts, z = x, shift
        if channel_group is not None:
            # The groups of channels are an axis of their own.
            parts = x.reshape(*x.shape[:-1], -1, channel_group)
            z = shift.reshape(-1, channel_group) if shift.size > 1 else shift
        return _dynamic_quantize(parts, z, low, high, (*tokens, -1)).reshape(x.shape)

    return compiled(kernel)


class PortableQuantizer:
    """What `mx.compile` makes of the formulas, on every backend.

    `mx.compile` joins elementwise operations and stops at a maximum, so a range that is found at
    run time takes two to four kernels and as many passes.

    Args:
        granularity: those that are not dynamic have one kernel.
        channel_group: adjacent channels that share a scale; None: all of them do.
    """

    def __init__(self, granularity: Granularity, channel_group: int | None):
        self._kernel = _portable_kernel(granularity.ranges_over, channel_group)
        self._channel_group = channel_group

    def __call__(self, x: mx.array, *arguments: mx.array) -> mx.array:
        """x (..., channels) quantized and dequantized, in its dtype.

        Args:
            arguments: what `arguments` gave for its input.
        """
        return self._kernel(x, *arguments)

    def arguments(self, params: StackedParams) -> list[tuple[mx.array, ...]]:
        """Of each input the arguments of its kernel behind x: the scale where it is known, z and
        the extreme codes; float32, () or (channels,); lazy."""
        values = [
            (*self._scale(scales), shift, *code_range(bits, unsigned))
            for scales, shift, bits, unsigned in zip(
                np.split(params.scales, np.cumsum(params.groups)[:-1]),
                params.shifts,
                params.bits,
                params.unsigned,
                strict=True,
            )
        ]
        arrays = iter(device_arrays([value for of_input in values for value in of_input]))
        return [tuple(next(arrays) for _ in of_input) for of_input in values]

    def _scale(self, scales: np.ndarray) -> list[float | np.ndarray]:
        if len(scales) > 1:
            return [np.repeat(scales, self._channel_group or 1)]
        return [float(scale) for scale in scales]


def quantizer_of(
    granularity: Granularity, channel_group: int | None
) -> PortableQuantizer | CudaQuantizer:
    """The fastest one here; see `PortableQuantizer`."""
    groups_of_tensors = granularity.ranges_over == "tensor" and channel_group is not None
    if backend_name() == "cuda" and not groups_of_tensors:
        return CudaQuantizer(granularity, channel_group)
    return PortableQuantizer(granularity, channel_group)
