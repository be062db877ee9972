"""The streams that enter a block if the blocks before it are already quantized.

Learning on these streams lets a block compensate for the errors of earlier blocks (asymmetric
reconstruction). The price is that blocks are quantized one after the other. The job of a block runs
all earlier blocks on the cached rows: this costs little beside the learning, and nothing is
stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..backend import mx
from ..finite import check_finite
from ..network.blocks import Network, stream_names
from .block_files import read_packed, read_parameters
from .block_io import BlockData, in_parts, read_block, run_block
from .grids import Packed, dequantize


def streams_after(
    model: Network,
    block: str,
    following: str,
    data: BlockData,
    packed: Mapping[str, Packed],
    parameters: Mapping[str, mx.array],
) -> tuple[mx.array, ...]:
    """Streams that enter block `following`, behind a quantized `block`.

    Args:
        model: the full-precision MMDiT; the block's weights in it are replaced.
        data: of `block`; what enters it is `data.entering`.
        packed: linear's name -> quantized weight, for the block's linears.
        parameters: module path -> parameter that balancing changed.

    Returns:
        (rows, tokens, 1, hidden) each in the model's dtype, in the order in which `following`
        takes them.

    Raises:
        UserError: a stream is NaN or infinite.
    """
    own = model.block(block)
    dtype = data.inputs[0].dtype
    model.module.load_weights(list(parameters.items()), strict=False)
    for linear in own.linears:
        if linear.name in packed:
            linear.module.weight = dequantize(packed[linear.name], dtype)
    modulation = [stream.modulation(data.modulation) for stream in own.streams.values()]
    positions = model.positional_encodings(data.latent_size, data.text_tokens)
    parts: list[tuple[mx.array, ...]] = []
    for part in in_parts(np.arange(len(data.modulation))):
        rows = mx.array(part)
        inputs = [stream[rows] for stream in data.entering]
        outputs = run_block(own, modulation, rows, inputs, positions)
        names = (f"the {stream} stream" for stream in own.streams)
        check_finite(dict(zip(names, outputs, strict=False)), f"behind quantized block {block}")
        parts.append(outputs)
    streams = [mx.concatenate(column) for column in zip(*parts, strict=True)]
    if stream_names(following) == ("uni",) and len(streams) > 1:
        image, text = streams
        streams = [mx.concatenate([text, image], axis=1)]
    return tuple(streams)


def prefix_streams(
    model: Network,
    block_names: Sequence[str],
    files: Sequence[str | Path],
    weights: Sequence[str | Path],
) -> tuple[mx.array, ...]:
    """Streams that enter a block behind all blocks before it, quantized.

    Args:
        model: the full-precision MMDiT; the weights of the blocks before are replaced in it.
        block_names: all blocks of the model, in order of computation.
        files: block_io files, one an image.
        weights: files of `optimize_block`, of the blocks before in their order; at least one.
    """
    data = read_block(files, block_names, block_names[0])
    for index, file in enumerate(weights):
        block, following = block_names[index : index + 2]
        streams = streams_after(
            model, block, following, data, read_packed([file]), read_parameters([file])
        )
        mx.eval(streams)
        data = replace(data, inputs=streams, targets=())
    return data.inputs
