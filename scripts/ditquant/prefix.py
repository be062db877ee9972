"""The streams that enter a block when the blocks before it are quantized already.

Learning on them lets a block make up for errors of those before it (asymmetric reconstruction);
the price is that blocks are quantized one after the other. A block's streams are computed from
those of the block before, which one job stores and the next one reads.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .backend import mx, nn
from .block_io import BlockData, positional_encodings, stream_names
from .blocks import call_block, set_modulation, walk_blocks, walk_linears
from .grids import Packed, dequantize

_ROWS_AT_ONCE = 16


def streams_after(
    model: nn.Module,
    block: str,
    following: str,
    data: BlockData,
    packed: Mapping[str, Packed],
    parameters: Mapping[str, mx.array],
) -> dict[str, mx.array]:
    """Streams that enter block `following`, behind a quantized `block`.

    Args:
        model: the full-precision MMDiT; the block's weights in it are replaced.
        data: of `block`; what enters it is `data.entering`.
        packed: linear's name -> quantized weight, for the block's linears.
        parameters: module path -> parameter that balancing changed.

    Returns:
        Stream's name in `following` -> (rows, tokens, 1, hidden), in the model's dtype.
    """
    own = next(one for one in walk_blocks(model) if one.name == block)
    dtype = data.inputs[0].dtype
    model.load_weights(list(parameters.items()), strict=False)
    for linear in walk_linears(own):
        if linear.name in packed:
            linear.module.weight = dequantize(packed[linear.name], dtype)
    modulation = [stream.adaLN_modulation(data.modulation) for stream in own.streams.values()]
    positions = positional_encodings(model, data)
    parts: list[tuple[mx.array, ...]] = []
    for start in range(0, len(data.modulation), _ROWS_AT_ONCE):
        rows = mx.array(np.arange(start, min(start + _ROWS_AT_ONCE, len(data.modulation))))
        for stream, values in zip(own.streams.values(), modulation, strict=True):
            set_modulation(stream, values[rows])
        outputs = call_block(own, [stream[rows] for stream in data.entering], positions)
        mx.eval(outputs)
        parts.append(outputs)
    streams = [mx.concatenate(column) for column in zip(*parts, strict=True)]
    if stream_names(following) == ("uni",) and len(streams) > 1:
        image, text = streams
        streams = [mx.concatenate([text, image], axis=1)]
    return dict(zip(stream_names(following), streams, strict=True))
