"""The model whose activations are measured: at full precision, or with a recipe's own weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..models.load import DTYPES
from ..models.spec import ModelSpec, read_spec
from ..network.blocks import Network
from ..network.diffusionkit import load_network
from .checkpoint import load_quantized


def load_measured(
    model: Mapping[str, Any], checkpoint: str | Path | None = None
) -> tuple[ModelSpec, Network]:
    """The model and what it is.

    Args:
        model: `name`, `checkpoint` and `dtype` of the configuration's model.
        checkpoint: config.json of a recipe's own weights, which are dequantized; None: those of
            `model`.

    Raises:
        UserError: see `read_spec`, `load_mmdit` and `load_quantized`.
    """
    spec, dtype = read_spec(model["name"], model["checkpoint"]), DTYPES[model["dtype"]]
    if checkpoint is None:
        return spec, load_network(spec, dtype)
    return spec, load_quantized(spec, Path(checkpoint).parent, dtype)
