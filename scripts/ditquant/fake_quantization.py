"""Quantizing activations and dequantizing them at once, in few passes over the tensor.

Computed in float32 and returned in the dtype of x. Scales and limits are arrays, so that one kernel
serves every layer, sigma and tier.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial

import numpy as np

from .backend import backend_name, compiled, device_vectors, mx
from .fake_quantization_cuda import quantize_entries, quantize_tokens
from .intervals import SMALLEST_RANGE
from .quant_config import Numbers, code_range
from .ranges import DYNAMIC

# Called with x and what `Quantizer.arguments` gives for its input.
Kernel = Callable[..., mx.array]
# A number, or which array.
_Key = float | tuple[str, int]


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
    """The fastest kernel here.

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


class Quantizer:
    """A kernel, and its arguments from the numbers of an activation configuration.

    A step needs hundreds of numbers, and each array that goes to the device costs the host time, so
    codes and shifts, which few sigmas change, are sent once.

    Args:
        granularity, channel_group: see `kernel_of`; where scales are listed, the channels of each.
        kernel: another than the fastest.
    """

    def __init__(self, granularity: str, channel_group: int | None, kernel: Kernel | None = None):
        self._kernel = kernel or kernel_of(granularity, channel_group)
        self._channel_group = channel_group
        # Key -> what was sent, which is kept because its identity may be the key, and the array.
        self._sent: dict[_Key, tuple[float | np.ndarray, mx.array]] = {}
        # Which of all scales each channel of each input has, and where the inputs end.
        self._of_channels: mx.array | None = None
        self._ends: list[int] = []

    def __call__(self, x: mx.array, *arguments: mx.array) -> mx.array:
        """x (..., channels) quantized and dequantized, in its dtype.

        Args:
            arguments: what `arguments` gave for its input.
        """
        return self._kernel(x, *arguments)

    def arguments(self, numbers: Mapping[str, Numbers]) -> dict[str, tuple[mx.array, ...]]:
        """Input -> the arguments of its kernel behind x: the scale where it is known, z and the
        extreme codes; float32, (1,) or (channels,); lazy.

        Args:
            numbers: of the same inputs, with as many scales, at every call.
        """
        kinds = {(one.bits, one.unsigned) for one in numbers.values()}
        lasting = {_key(one.shift): one.shift for one in numbers.values()}
        lasting |= {float(code): code for kind in kinds for code in code_range(*kind)}
        new = {key: value for key, value in lasting.items() if key not in self._sent}
        for (key, value), array in zip(
            new.items(), device_vectors(list(new.values())), strict=True
        ):
            self._sent[key] = value, array
        sent = {key: self._sent[key][1] for key in lasting}
        codes = {kind: tuple(sent[float(code)] for code in code_range(*kind)) for kind in kinds}
        listed = {name: one.scale for name, one in numbers.items() if one.scale is not None}
        scales = dict(zip(listed, self._send_scales(list(listed.values())), strict=True))
        return {
            name: (
                *((scales[name],) if name in scales else ()),
                sent[_key(one.shift)],
                *codes[one.bits, one.unsigned],
            )
            for name, one in numbers.items()
        }

    def _send_scales(self, scales: list[float | np.ndarray]) -> list[mx.array]:
        """(1,) or (channels,) each: those of groups are repeated on the device."""
        if self._channel_group is None or not scales:
            return device_vectors(scales)
        if self._of_channels is None:
            counts = [
                np.full(np.size(scale), self._channel_group if np.size(scale) > 1 else 1)
                for scale in scales
            ]
            self._ends = np.cumsum([count.sum() for count in counts]).tolist()
            repeats = np.concatenate(counts)
            self._of_channels = mx.array(np.repeat(np.arange(len(repeats)), repeats))
        (groups,) = device_vectors([np.concatenate([np.ravel(scale) for scale in scales])])
        return mx.split(groups[self._of_channels], self._ends)[:-1]


def _key(value: float | np.ndarray) -> _Key:
    return ("array", id(value)) if isinstance(value, np.ndarray) else float(value)


def _applied(
    x: mx.array, numbers: Numbers, granularity: str, channel_group: int | None
) -> mx.array:
    quantizer = Quantizer(granularity, channel_group)
    return quantizer(x, *quantizer.arguments({"": numbers})[""])


def fake_quantize(
    x: mx.array, scale: float | np.ndarray, bits: int, shift: float | np.ndarray = 0.0
) -> mx.array:
    """clip(round((x - z) / s), -2^(b-1), 2^(b-1) - 1) s + z, in float32, in the dtype of x.

    Args:
        x: (..., channels) of any float dtype.
        scale: s, positive; one number, or one for each group of adjacent channels (groups,).
        bits: b.
        shift: z, the value of code 0; one number, or one for each channel.
    """
    groups = int(np.size(scale))
    length = x.shape[-1] // groups if groups > 1 else None
    return _applied(x, Numbers(bits, scale, shift), "static", length)


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
    return _applied(x, Numbers(bits, None, shift, unsigned), granularity, channel_group)
