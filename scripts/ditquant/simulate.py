"""Simulated activation quantization: what a linear reads is rounded to the codes it would have.

MLX has no W4A8 product, so activations are quantized and dequantized in front of each linear
("fake quantization"): the pictures are those of a W4A8 kernel, the speed is not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np

from .backend import compiled, mx, nn, to_numpy
from .blocks import Linear, all_linears, tapped
from .errors import UserError
from .intervals import SMALLEST_RANGE
from .metrics import decibels
from .quant_config import Numbers, QuantConfig
from .ranges import DYNAMIC

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


# Scales and limits are arrays, so that one compiled kernel serves every layer, sigma and tier.
_compiled_fake_quantize = compiled(_fake_quantize)


@cache
def _dynamic_kernel(granularity: str, channel_group: int | None) -> Kernel:
    """Called with x, shift, low, high; the groups of channels are an axis of their own."""

    def kernel(x: mx.array, shift: mx.array, low: mx.array, high: mx.array) -> mx.array:
        # Not the first axis: a picture must not depend on which others are drawn with it.
        tokens = range(1, x.ndim - 1) if granularity == "dynamic-tensor" else ()
        parts, z = x, shift
        if channel_group is not None:
            parts = x.reshape(*x.shape[:-1], -1, channel_group)
            z = shift.reshape(-1, channel_group) if shift.size > 1 else shift
        return _dynamic_quantize(parts, z, low, high, (*tokens, -1)).reshape(x.shape)

    return compiled(kernel)


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
    return _compiled_fake_quantize(x, *_arrays(Numbers(bits, scale, shift)))


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
    kernel = _dynamic_kernel(granularity, channel_group)
    return kernel(x, *_arrays(Numbers(bits, None, shift, unsigned)))


def _arrays(numbers: Numbers) -> tuple[mx.array, ...]:
    """The arguments of a kernel behind x: the scale where it is known, z and the extreme codes."""
    low = 0 if numbers.unsigned else -(2 ** (numbers.bits - 1))
    high = low + 2**numbers.bits - 1
    limits = (mx.array(numbers.shift), mx.array(float(low)), mx.array(float(high)))
    return limits if numbers.scale is None else (mx.array(numbers.scale), *limits)


def _check_fit(linears: list[Linear], config: QuantConfig) -> None:
    names, known = {linear.name for linear in linears}, set(config.layers)
    if names == known:
        return
    parts = [
        f"{what} {len(found)} ({', '.join(sorted(found)[:3])}, ...)"
        for what, found in (("unknown layers:", known - names), ("missing layers:", names - known))
        if found
    ]
    raise UserError(
        f"The activation configuration was measured on another model ({config.model}); "
        f"{'; '.join(parts)}. Delete activations/quant_config*.json and run again."
    )


class Simulation:
    """Fake-quantizes inputs with the numbers of the current sigma.

    Called with (index, sigma) before each forward pass (`sample_euler` does), it selects the
    numbers of that sigma, whatever the number of steps.
    """

    def __init__(self, config: QuantConfig):
        self._config = config
        self._kernel: Kernel = _compiled_fake_quantize
        if config.granularity in DYNAMIC:
            self._kernel = _dynamic_kernel(config.granularity, config.channel_group)
        self._numbers: dict[str, tuple[mx.array, ...]] = {}
        # Kernels' arguments, made once for each row of the configuration; a step needs hundreds.
        self._arrays: dict[float | int, dict[str, tuple[mx.array, ...]]] = {}
        self._last: tuple[mx.array, str, mx.array] | None = None
        # Of each forward pass since measuring began: input -> energies of x and of its error.
        self._energies: list[tuple[float, dict[str, mx.array]]] | None = None

    def __call__(self, index: int, sigma: float) -> None:
        self._last = None
        # A polynomial has other numbers at every sigma, the others at every row.
        key = sigma if self._config.granularity == "polynomial" else self._config.row(sigma)
        if key not in self._arrays:
            one_of_each = {layer.input: layer for layer in self._config.layers.values()}
            self._arrays[key] = {
                name: _arrays(self._config.numbers(layer, sigma))
                for name, layer in one_of_each.items()
            }
        self._numbers = self._arrays[key]
        if self._energies is not None:
            # What was measured is computed before the next pass holds as much again.
            mx.eval([energies for _, energies in self._energies[-1:]])
            self._energies.append((sigma, {}))

    def see(self, linear: Linear, x: mx.array) -> mx.array:
        layer = self._config.layers[linear.name]
        if not self._numbers:
            raise RuntimeError("before_step(index, sigma) must be called before the model")
        # q, k and v are called with the very same array: it is quantized once.
        if self._last is not None and self._last[0] is x and self._last[1] == layer.input:
            return self._last[2]
        if x.shape[-1] != layer.channels:
            raise UserError(
                f"{linear.name} reads {x.shape[-1]} channels, but the activation configuration of "
                f"{self._config.model} has {layer.channels}: it was measured on another model."
            )
        quantized = self._kernel(x, *self._numbers[layer.input])
        self._last = (x, layer.input, quantized)
        if self._energies is not None:
            exact = x.astype(mx.float32)
            error = quantized.astype(mx.float32) - exact
            energies = [mx.sum(mx.square(part)) for part in (exact, error)]
            self._energies[-1][1][layer.input] = mx.stack(energies)
        return quantized

    @contextmanager
    def measuring(self) -> Iterator[dict[str, dict[float, float | None]]]:
        """Within the context, errors of the inputs are measured; what they were is known behind it.

        Yields:
            Input name -> sigma -> 10 log10(sum x^2 / sum (x_q - x)^2) in dB, over all forward
            passes at that sigma; None where nothing was lost. Filled when the context ends.
        """
        self._energies = []
        found: dict[str, dict[float, float | None]] = {}
        try:
            yield found
            sums: dict[str, dict[float, np.ndarray]] = {}
            for sigma, energies in self._energies:
                for name, pair in energies.items():
                    by_sigma = sums.setdefault(name, {})
                    by_sigma[sigma] = by_sigma.get(sigma, 0.0) + to_numpy(pair).astype(np.float64)
            for name, by_sigma in sums.items():
                found[name] = {sigma: decibels(*pair) for sigma, pair in by_sigma.items()}
        finally:
            self._energies = None


@contextmanager
def simulated_activations(
    model: nn.Module, config: QuantConfig, only: Collection[str] | None = None
) -> Iterator[Simulation]:
    """Within the context the inputs of every block linear are fake-quantized.

    Args:
        only: names of the inputs that are; None: all.

    Yields:
        What is to be called as `before_step(index, sigma)` before each forward pass.

    Raises:
        UserError: the configuration names other layers than the model has, or other widths.
    """
    linears = all_linears(model)
    _check_fit(linears, config)
    simulation = Simulation(config)
    chosen = [one for one in linears if only is None or config.layers[one.name].input in only]
    with tapped(chosen, simulation.see):
        yield simulation
