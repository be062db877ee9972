"""Fake quantization on CUDA by kernels of our own, which read a layer's numbers where they lie.

On an H200 the host prepares a forward pass of SD3-medium more slowly than the device computes it,
so every array and every operation that it need not prepare counts. All numbers of a sigma are one
array, and each layer knows its place in it: a new sigma costs one copy instead of 756 arrays. And
ranges that are found at run time take one kernel instead of up to four. The formulas are those of
`activations.fake_quantization`, and so are the results: the same operations in float32, rounded
alike.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from math import prod
from typing import Any

import numpy as np

from ...activations.granularity import Granularity
from ...activations.quant_params import StackedParams, code_range
from ...backend import compiled, device_arrays, mx
from .fake_quantization_sources import ENTRIES, EXTREMES, HEADER, LISTED, TOKENS
from .launching import cuda_kernel

_THREADS = 256
# Of an entry of the batch, each with a maximum of its own.
_PARTS = 64


def _together(dtype: mx.Dtype, length: int) -> int:
    """How many of `length` adjacent values a thread reads at once: 16 bytes, if that divides it."""
    most = 16 // dtype.size
    return most if length % most == 0 else 1


def _whole_blocks(threads: int) -> int:
    return -(-threads // _THREADS) * _THREADS


def _launch(
    kernel: Any,
    inputs: list[mx.array],
    sizes: dict[str, int],
    grid: tuple[int, int],
    shape: tuple[int, ...],
    dtype: mx.Dtype,
) -> mx.array:
    """The kernel's only output. `T` is the dtype of the first input, `grid` is in threads; the last
    input are shifts."""
    (out,) = kernel(
        inputs=inputs,
        template=[("T", inputs[0].dtype), *sizes.items(), ("SHIFTS", inputs[-1].size)],
        grid=(*grid, 1),
        threadgroup=(_THREADS, 1, 1),
        output_shapes=[shape],
        output_dtypes=[dtype],
    )
    return out


_NUMBERS = ("numbers", "place", "shifts")


def quantize_listed(
    x: mx.array, numbers: mx.array, place: mx.array, shifts: mx.array, length: int | None = None
) -> mx.array:
    """Fake-quantizes with scales that are known.

    Args:
        x: (..., channels) of any float dtype.
        numbers: float32, see `CudaQuantizer.arguments`.
        place: (2,) int32: where the layer's begin in them, and how many scales it has.
        shifts: (channels,) float32; (1,) where the layer's one shift is among its numbers.
        length: channels of a group, for layers that have several.
    """
    channels = x.shape[-1]
    together = _together(x.dtype, length or channels)
    count = x.size // together
    kernel = cuda_kernel("listed", LISTED, ("x", *_NUMBERS), HEADER)
    sizes = {"N": together, "COUNT": count, "CHANNELS": channels}
    grid = (_whole_blocks(count), 1)
    return _launch(kernel, [x, numbers, place, shifts], sizes, grid, x.shape, x.dtype)


def quantize_tokens(
    x: mx.array, numbers: mx.array, place: mx.array, shifts: mx.array, length: int | None = None
) -> mx.array:
    """Fake-quantizes each token, or each `length` adjacent channels of one, with its own scale.

    Args:
        x, numbers, place, shifts: see `quantize_listed`; the layer has no scales.
    """
    channels = x.shape[-1]
    length = length or channels
    together = _together(x.dtype, length)
    lanes = 1
    while lanes < 32 and 2 * lanes * together <= length:
        lanes *= 2
    parts = x.size // length
    sizes = {
        "N": together, "LANES": lanes, "PARTS": parts, "CHANNELS": channels, "LENGTH": length,
    }  # fmt: skip
    kernel = cuda_kernel("tokens", TOKENS, ("x", *_NUMBERS), HEADER)
    grid = (_whole_blocks(parts * lanes), 1)
    return _launch(kernel, [x, numbers, place, shifts], sizes, grid, x.shape, x.dtype)


def quantize_entries(x: mx.array, numbers: mx.array, place: mx.array, shifts: mx.array) -> mx.array:
    """Fake-quantizes each entry of the batch with a scale of its own.

    Args:
        x: (batch, ..., channels).
        numbers, place, shifts: see `quantize_tokens`.
    """
    entries, channels = x.shape[0], x.shape[-1]
    together = _together(x.dtype, channels)
    count = prod(x.shape[1:]) // together
    sizes = {
        "N": together, "COUNT": count, "PARTS": _PARTS, "THREADS": _THREADS, "CHANNELS": channels,
    }  # fmt: skip
    own = [numbers, place, shifts]
    finding = cuda_kernel("extremes", EXTREMES, ("x", *_NUMBERS), HEADER)
    grid = (entries * _PARTS * _THREADS, 1)
    extremes = _launch(finding, [x, *own], sizes, grid, (entries, _PARTS), mx.float32)
    rounding = cuda_kernel("entries", ENTRIES, ("x", "extremes", *_NUMBERS), HEADER)
    grid = (_whole_blocks(count), entries)
    return _launch(rounding, [x, extremes, *own], sizes, grid, x.shape, x.dtype)


@cache
def _kernel(over: str | None, channel_group: int | None) -> Callable[..., mx.array]:
    """Compiled because a step calls it hundreds of times: a kernel of our own is described anew at
    each call, which takes longer than all of a compiled call."""
    if over == "tensor":
        return compiled(quantize_entries)
    one = quantize_tokens if over == "token" else quantize_listed
    return compiled(partial(one, length=channel_group))


class _Places:
    """Where inputs have their numbers in one vector: lowest code, highest code, shift, scales.

    Args:
        groups: how many scales each input has.
    """

    def __init__(self, groups: tuple[int, ...]):
        self.groups = groups
        counts = np.array(groups)
        self.first = np.cumsum(3 + counts) - (3 + counts)
        self.size = int((3 + counts).sum())
        is_scale = np.ones(self.size, dtype=bool)
        for offset in range(3):
            is_scale[self.first + offset] = False
        self.scales = np.flatnonzero(is_scale)
        pairs = np.stack([self.first, counts], axis=1)
        self.on_device = device_arrays(list(pairs), mx.int32)

    def filled(self, params: StackedParams) -> np.ndarray:
        """(size,) float32; shifts of single channels are left out."""
        values = np.empty(self.size, dtype=np.float32)
        codes = np.array(
            [code_range(*kind) for kind in zip(params.bits, params.unsigned, strict=True)]
        )
        values[self.first], values[self.first + 1] = codes.T
        values[self.first + 2] = [
            0.0 if isinstance(shift, np.ndarray) else shift for shift in params.shifts
        ]
        values[self.scales] = params.scales
        return values


class CudaQuantizer:
    """`activations.fake_quantization.PortableQuantizer` by the kernels above.

    Not for ranges of a whole tensor's groups of channels.
    """

    def __init__(self, granularity: Granularity, channel_group: int | None):
        self._kernel = _kernel(granularity.ranges_over, channel_group)
        # What no sigma changes.
        self._places: _Places | None = None
        self._shifts: list[mx.array] = []

    def __call__(self, x: mx.array, *arguments: mx.array) -> mx.array:
        return self._kernel(x, *arguments)

    def arguments(self, params: StackedParams) -> list[tuple[mx.array, ...]]:
        """Of each input the arguments of its kernel behind x, lazy: all numbers, which the inputs
        share, its place among them, and its channels' shifts.

        Args:
            params: of the same inputs, with as many scales and the same shifts of channels, at
                every call.
        """
        if self._places is None:
            self._places = _Places(params.groups)
            self._shifts = device_arrays(
                [shift if isinstance(shift, np.ndarray) else np.zeros(1) for shift in params.shifts]
            )
        (together,) = device_arrays([self._places.filled(params)])
        return [
            (together, place, shift)
            for place, shift in zip(self._places.on_device, self._shifts, strict=True)
        ]
