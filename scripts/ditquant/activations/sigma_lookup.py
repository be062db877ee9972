"""What an activation configuration says of its inputs at any sigma.

Rows are looked up by the nearest measured sigma; a polynomial is evaluated at the sigma itself. All
inputs are looked up at once, because a step needs the scales of hundreds of inputs.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .granularity import by_row
from .quant_config import LayerConfig, QuantConfig
from .quant_params import QuantParams, StackedParams


class SigmaLookup:
    """The quantization of some layers' inputs by sigma.

    Args:
        layers: of the configuration, one for each input.
    """

    def __init__(self, config: QuantConfig, layers: Iterable[LayerConfig]):
        self._config = config
        layers = list(layers)
        rows = max(config.row_of) + 1
        self._bits = by_row([layer.bits for layer in layers], rows).tolist()
        self._unsigned = tuple(layer.unsigned for layer in layers)
        self._channel_shifts = [
            layer.shift_of_channels if layer.channel_shift else None for layer in layers
        ]
        self._look_up = config.granularity.lookup(layers, config.sigmas, rows)
        self._groups = tuple(len(layer.factors_of_groups[0]) for layer in layers)
        self._factors = np.concatenate(
            [np.broadcast_to(one.factors_of_groups, (rows, count))
             for one, count in zip(layers, self._groups, strict=True)],
            axis=1,
        )  # fmt: skip

    def key(self, sigma: float) -> float | int:
        """Equal where parameters are: polynomials have others at every sigma, most at every row."""
        if self._config.granularity.is_continuous:
            return sigma
        return 0 if self._config.is_constant else self._config.row(sigma)

    def at(self, sigma: float) -> StackedParams:
        """What holds at a sigma."""
        row = self._config.row(sigma)
        bits, groups = tuple(self._bits[row]), self._groups
        scales, common = self._look_up(sigma, row, bits)
        if len(scales):
            scales = np.repeat(scales, groups) * self._factors[row]
        else:
            groups = (0,) * len(groups)
        shifts = [
            shift if of_channels is None else of_channels
            for shift, of_channels in zip(common, self._channel_shifts, strict=True)
        ]
        return StackedParams(bits, self._unsigned, scales, groups, shifts)


def params_along(
    config: QuantConfig, layer: LayerConfig, sigmas: Iterable[float]
) -> list[QuantParams]:
    """What holds for one layer at each of some sigmas."""
    lookup = SigmaLookup(config, [layer])
    found = []
    for sigma in sigmas:
        one = lookup.at(sigma)
        scale: float | np.ndarray | None = None
        if len(one.scales):
            scale = one.scales if layer.multipliers else float(one.scales[0])
        found.append(QuantParams(one.bits[0], scale, one.shifts[0], layer.unsigned))
    return found
