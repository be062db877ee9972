"""Simulated activation quantization: what a linear reads is rounded to the codes it would have.

MLX has no W4A8 product, so activations are quantized and dequantized in front of each linear
("fake quantization"): the pictures are those of a W4A8 kernel, the speed is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .artifacts import read_json
from .backend import compiled, mx, nn
from .blocks import Linear, all_linears, tapped
from .errors import UserError
from .ranges import CONFIG_FORMAT


def _fake_quantize(
    x: mx.array, scale: mx.array, shift: mx.array, low: mx.array, high: mx.array
) -> mx.array:
    codes = mx.clip(mx.round((x.astype(mx.float32) - shift) / scale), low, high)
    return (codes * scale + shift).astype(x.dtype)


# Scales and limits are arrays, so that one compiled kernel serves every layer, sigma and tier.
_compiled_fake_quantize = compiled(_fake_quantize)


def fake_quantize(x: mx.array, scale: float, bits: int, shift: float = 0.0) -> mx.array:
    """clip(round((x - z) / s), -2^(b-1), 2^(b-1) - 1) s + z, in float32, in the dtype of x.

    Args:
        x: any shape and float dtype.
        scale: s, positive.
        bits: b.
        shift: z, the value of code 0.
    """
    return _compiled_fake_quantize(x, *_arrays(scale, bits, shift))


def _arrays(scale: float, bits: int, shift: float) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    half = 2 ** (bits - 1)
    return mx.array(scale), mx.array(shift), mx.array(float(-half)), mx.array(float(half - 1))


@dataclass(frozen=True)
class LayerConfig:
    """How one linear's input is quantized at each of R sigmas (R = 1: one for all).

    Attributes:
        input: layers of the same input name read one array and have equal numbers.
        channels: width of the input.
        bits, scales, shifts: R numbers each.
    """

    input: str
    channels: int
    bits: tuple[int, ...]
    scales: tuple[float, ...]
    shifts: tuple[float, ...]


@dataclass(frozen=True)
class QuantConfig:
    """An activation configuration as `ranges` wrote it.

    Attributes:
        model: name of the model whose activations were measured.
        sigmas: the measured sigmas, descending.
        layers: linear name -> numbers.
    """

    model: str
    sigmas: tuple[float, ...]
    layers: dict[str, LayerConfig]

    def row(self, sigma: float) -> int:
        """Index of the measured sigma that is nearest to `sigma`."""
        return int(np.abs(np.asarray(self.sigmas) - sigma).argmin())


def _layer(where: str, entry: Mapping[str, Any], rows: int) -> LayerConfig:
    bits, scales = tuple(entry["bits"]), tuple(entry["scales"])
    shifts = tuple(entry.get("shifts", [0.0] * len(scales)))
    if len(scales) not in (1, rows) or not len(bits) == len(scales) == len(shifts):
        raise UserError(
            f"{where}: bits, scales and shifts must have one entry each, or one for each of the "
            f"{rows} sigmas; found {len(bits)}, {len(scales)} and {len(shifts)}."
        )
    if not all(scale > 0 for scale in scales) or not all(2 <= b <= 16 for b in bits):
        raise UserError(f"{where}: scales must be positive and bits 2 to 16.")
    return LayerConfig(entry["input"], entry["channels"], bits, scales, shifts)


def load_quant_config(path: str | Path) -> QuantConfig:
    """Reads quant_config.json or quant_config_multitier.json.

    Raises:
        UserError: another format, or entries that do not fit together.
    """
    document = read_json(path, CONFIG_FORMAT)
    try:
        sigmas = tuple(document["sigmas"])
        layers = {
            name: _layer(f"{path}, {name}", entry, len(sigmas))
            for name, entry in document["layers"].items()
        }
        return QuantConfig(document["model"], sigmas, layers)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} lacks or garbles {error}: delete it and run again.") from error


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


class _Quantizer:
    """Fake-quantizes inputs with the numbers of the current row."""

    def __init__(self, config: QuantConfig):
        self._config = config
        self._numbers: dict[str, tuple[mx.array, ...]] = {}
        self._last: tuple[mx.array, str, mx.array] | None = None

    def select(self, row: int) -> None:
        self._last = None
        self._numbers = {}
        for layer in self._config.layers.values():
            if layer.input not in self._numbers:
                at = row if len(layer.scales) > 1 else 0
                numbers = (layer.scales[at], layer.bits[at], layer.shifts[at])
                self._numbers[layer.input] = _arrays(*numbers)

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
        quantized = _compiled_fake_quantize(x, *self._numbers[layer.input])
        self._last = (x, layer.input, quantized)
        return quantized


@contextmanager
def simulated_activations(
    model: nn.Module, config: QuantConfig
) -> Iterator[Callable[[int, float], None]]:
    """Within the context the inputs of every block linear are fake-quantized.

    Yields:
        `before_step(index, sigma)`, to be called before each forward pass (`sample_euler` does):
        it selects the numbers of the nearest measured sigma, whatever the number of steps.

    Raises:
        UserError: the configuration names other layers than the model has, or other widths.
    """
    linears = all_linears(model)
    _check_fit(linears, config)
    quantizer = _Quantizer(config)

    def before_step(index: int, sigma: float) -> None:
        quantizer.select(config.row(sigma))

    with tapped(linears, quantizer.see):
        yield before_step
