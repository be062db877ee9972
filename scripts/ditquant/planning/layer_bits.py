"""What a recipe asks of one linear. Block jobs read this too, so that it is alone in its file."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

# Inputs that share a scale in MLX's packed storage, the largest first.
MLX_GROUPS = (128, 64, 32)


def layer_bits(recipe: Mapping[str, Any], name: str) -> int | str:
    """Bits of a block linear by a recipe, or "full" for one that it leaves alone.

    `layers` maps patterns ("*.txt.*", "mm23.*.fc2") to bits or "full"; the last that fits counts.
    """
    fitting = [bits for pattern, bits in recipe["layers"].items() if fnmatchcase(name, pattern)]
    bits: int | str = fitting[-1] if fitting else recipe["bits"]
    return bits
