"""Simulated activation quantization: rounds the input of each linear to its codes.

MLX cannot multiply 4-bit weights by 8-bit activations, so activations are quantized and dequantized
in front of each linear ("fake quantization"). The pictures are those of a W4A8 kernel; the speed is
not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import numpy as np

from ..backend import mx, to_numpy
from ..errors import UserError
from ..metrics import decibels
from ..network.blocks import Linear, Network, tapped
from .fake_quantization import quantizer_of
from .quant_config import QuantConfig
from .sigma_lookup import SigmaLookup


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

    Args:
        only: names of the inputs that will be seen; None: all.
    """

    def __init__(self, config: QuantConfig, only: Collection[str] | None = None):
        self._config = config
        # Layers of the same input have equal numbers.
        self._layers = {
            layer.input: layer
            for layer in config.layers.values()
            if only is None or layer.input in only
        }
        self._quantizer = quantizer_of(config.granularity, config.channel_group)
        self._lookup = SigmaLookup(config, self._layers.values())
        self._numbers: dict[str, tuple[mx.array, ...]] = {}
        # Kernels' arguments, made once for each row of the configuration; a step needs hundreds.
        self._arrays: dict[float | int, dict[str, tuple[mx.array, ...]]] = {}
        self._last: tuple[mx.array, str, mx.array] | None = None
        # Of each forward pass since measuring began: input -> energies of x and of its error.
        self._energies: list[tuple[float, dict[str, mx.array]]] | None = None

    def __call__(self, index: int, sigma: float) -> None:
        self._last = None
        key = self._lookup.key(sigma)
        if key not in self._arrays:
            arrays = self._quantizer.arguments(self._lookup.at(sigma))
            # Not waited for: the host goes on with the model's graph.
            mx.async_eval(arrays)
            self._arrays[key] = dict(zip(self._layers, arrays, strict=True))
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
        quantized = self._quantizer(x, *self._numbers[layer.input])
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
    model: Network, config: QuantConfig, only: Collection[str] | None = None
) -> Iterator[Simulation]:
    """Within the context the inputs of every block linear are fake-quantized.

    Args:
        only: names of the inputs that are; None: all.

    Yields:
        What is to be called as `before_step(index, sigma)` before each forward pass.

    Raises:
        UserError: the configuration names other layers than the model has, or other widths.
    """
    linears = model.linears
    _check_fit(linears, config)
    simulation = Simulation(config, only)
    chosen = [one for one in linears if only is None or config.layers[one.name].input in only]
    with tapped(chosen, simulation.see):
        yield simulation
