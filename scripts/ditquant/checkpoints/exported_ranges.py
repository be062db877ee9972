"""The ranges of the activations, for a W4A8 kernel, in a file of the checkpoint.

MLX has no kernel yet that multiplies 4-bit weights by 8-bit activations. For those who write one,
`activations.safetensors` in the checkpoint's folder holds the measured ranges by module path, with
one row for each sigma group of the configuration (or each measured sigma, or one row):

    "<path>.input_amax"         (rows,) the largest |x| that was measured
    "<path>.input_scale"        (rows,), or (rows, groups of channels); not for ranges at run time,
                                and for polynomials at the measured sigmas
    "<path>.input_shift"        (rows,), or (channels,) for shifts of single channels: the value of
                                code 0, whose product with the weights belongs into the bias

The metadata say how these are to be read: granularity, bits by path, sigmas, the row of each sigma
and the channels of a group. Where the recipe rotates, all of this is said of H x, "rotation" is the
size of H, and "rotation_signs.<channels>" (int8) is the diagonal of S for inputs of that width; see
`rotation`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..activations.input_statistics import Statistics
from ..activations.quant_config import LayerConfig, QuantConfig
from ..activations.segments import grouped
from ..activations.sigma_lookup import params_along
from ..backend import mx
from ..network.diffusionkit import linear_path
from ..weights.rotation import signs

KIND = "ditquant.input_ranges"


def _layer_arrays(layer: LayerConfig, config: QuantConfig) -> dict[str, np.ndarray]:
    """Scale and shift of a layer's rows, the scale only where it is known."""
    first_of_row = [config.row_of.index(row) for row in range(max(config.row_of) + 1)]
    params = params_along(config, layer, [config.sigmas[step] for step in first_of_row])
    arrays = {}
    if not config.granularity.is_dynamic:
        arrays["input_scale"] = np.array([one.scale for one in params], dtype=np.float32)
    if layer.channel_shift:
        arrays["input_shift"] = np.array(layer.channel_shift, dtype=np.float32)
    else:
        arrays["input_shift"] = np.array([one.shift for one in params], dtype=np.float32)
    return arrays


def input_ranges(
    statistics: Statistics, config: QuantConfig, rotation: int | None = None
) -> tuple[dict[str, mx.array], dict[str, Any]]:
    """Tensors and metadata of the file; see the module.

    Args:
        statistics: what the configuration was made from.
        rotation: size of the matrix that rotates the inputs, or None.
    """
    tensors: dict[str, mx.array] = {}
    bits: dict[str, list[int]] = {}
    row_of = list(config.row_of)
    for name, layer in config.layers.items():
        path = linear_path(name)
        arrays = _layer_arrays(layer, config)
        arrays["input_amax"] = grouped(statistics.of(name), row_of).absmax.astype(np.float32)
        tensors |= {f"{path}.{part}": mx.array(array) for part, array in arrays.items()}
        bits[path] = list(layer.bits)
    metadata = {
        "granularity": config.granularity.name,
        "bits": bits,
        "sigmas": list(config.sigmas),
        "row_of": row_of,
        "channel_group": config.channel_group,
    }
    if rotation is not None:
        metadata["rotation"] = rotation
        for channels in sorted({layer.channels for layer in config.layers.values()}):
            diagonal = signs(channels).astype(np.int8)
            tensors[f"rotation_signs.{channels}"] = mx.array(diagonal)
    return tensors, metadata
