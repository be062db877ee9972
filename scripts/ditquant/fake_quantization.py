"""Quantizing activations and dequantizing them at once, in few passes over the tensor.

Computed in float32 and returned in the dtype of x. Scales and limits are arrays, so that one kernel
serves every layer, sigma and tier.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial

import numpy as np

from .backend import backend_name, compiled, device_arrays, mx
from .fake_quantization_cuda import quantize_entries, quantize_tokens
from .intervals import SMALLEST_RANGE
from .quant_config import Numbers
from .ranges import DYNAMIC

# Called with x and its `kernel_arguments`.
Kernel = Callable[..., mx.array]


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
def portable_kernel(granularity: str, channel_group: int | None) -> Kernel:
    """Of what `mx.compile` makes of the formulas, on every backend; see `kernel_of`."""
    if granularity not in DYNAMIC:
        return _compiled_fake_quantize

    def kernel(x: mx.array, shift: mx.array, low: mx.array, high: mx.array) -> mx.array:
        # Not the first axis: a picture must not depend on which others are drawn with it.
        tokens = range(1, x.ndim - 1) if granularity == "dynamic-tensor" else ()
        parts, z = x, shift
        if channel_group is not None:
            # The groups of channels are an axis of their own.
            parts = x.reshape(*x.shape[:-1], -1, channel_group)
            z = shift.reshape(-1, channel_group) if shift.size > 1 else shift
        return _dynamic_quantize(parts, z, low, high, (*tokens, -1)).reshape(x.shape)

    return compiled(kernel)


@cache
def kernel_of(granularity: str, channel_group: int | None) -> Kernel:
    """What is called with x and its `kernel_arguments`.

    `mx.compile` joins elementwise operations and stops at a maximum, so a range that is found at
    run time takes two to four kernels and as many passes; on CUDA there is one kernel for that.

    Args:
        granularity: see `ranges.GRANULARITIES`; those that are not dynamic have one kernel.
        channel_group: of dynamic ranges, see `fake_quantize_dynamic`.
    """
    # Compiled because a step calls them hundreds of times: a kernel of our own is described anew at
    # each call, which takes longer than all of a compiled call.
    if backend_name() == "cuda" and granularity == "dynamic-token":
        return compiled(partial(quantize_tokens, length=channel_group))
    if backend_name() == "cuda" and granularity == "dynamic-tensor" and channel_group is None:
        return compiled(quantize_entries)
    return portable_kernel(granularity, channel_group)


def kernel_arguments(numbers: Mapping[str, Numbers]) -> dict[str, tuple[mx.array, ...]]:
    """Input -> the arguments of its kernel behind x: the scale where it is known, z and the
    extreme codes; float32, () or (channels,)."""
    values: list[float | np.ndarray] = []
    for one in numbers.values():
        low = 0 if one.unsigned else -(2 ** (one.bits - 1))
        values += [] if one.scale is None else [one.scale]
        values += [one.shift, low, low + 2**one.bits - 1]
    arrays = iter(device_arrays(values))
    return {
        name: tuple(next(arrays) for _ in range(3 if one.scale is None else 4))
        for name, one in numbers.items()
    }


def fake_quantize(
    x: mx.array, scale: float | np.ndarray, bits: int, shift: float | np.ndarray = 0.0
) -> mx.array:
    """clip(round((x - z) / s), -2^(b-1), 2^(b-1) - 1) s + z, in float32, in the dtype of x.

    Args:
        x: (..., channels) of any float dtype.
        scale: s, positive; one number, or one for each channel.
        bits: b.
        shift: z, the value of code 0; likewise.
    """
    return _compiled_fake_quantize(x, *kernel_arguments({"": Numbers(bits, scale, shift)})[""])


def fake_quantize_dynamic(
    x: mx.array,
    granularity: str,
    bits: int,
    shift: float | np.ndarray = 0.0,
    unsigned: bool = False,
    channel_group: int | None = None,
) -> mx.array:
    """The same with s = max |x - z| / (largest code), found in the values themselves.

    Args:
        x: (batch, ..., channels).
        granularity: "dynamic-tensor": the maximum is over all of one entry of the batch;
            "dynamic-token": over the channels of one token.
        bits, shift: see `fake_quantize`.
        unsigned: codes are 0 to 2^b - 1, for values that are never below z.
        channel_group: each so many adjacent channels have a scale of their own, as llama.cpp's
            blocks of 32 activations have (ggml's Q8_0); None: all channels share it.
    """
    arguments = kernel_arguments({"": Numbers(bits, None, shift, unsigned)})[""]
    return kernel_of(granularity, channel_group)(x, *arguments)
