"""The residual streams between blocks: the input of each block, and its target output.

There is one file for each image. A row is one half of a guided pair (prompt, then negative prompt)
at one cached step, step-major. Each boundary is stored once, because a block's output is the next
block's input: "mm03.img" is the image stream that enters block mm03, "out.img" what leaves the last
block. Where
unified blocks follow multimodal ones, their single stream is the text stream and then the image
stream; "uni00.uni" is stored, and the targets of the last multimodal block are split from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..artifacts import load_metadata, load_tensors
from ..backend import mx
from ..finite import check_finite
from ..network.blocks import Block, Network, boundaries, stream_names
from ..network.calibration import Trajectory
from ..network.sampling import predict

BLOCK_IO = "ditquant.block_io"


@dataclass(frozen=True)
class BlockData:
    """What the optimisation of one block reads: rows of all images, in image order.

    Attributes:
        inputs: one (rows, tokens, 1, hidden) array a stream, in the block's own order.
        targets: the full-precision outputs, for the streams that the block does not drop.
        modulation: (rows, 1, 1, hidden), what every adaLN reads.
        rows_per_image: how many rows come from each image.
        latent_size: (height, width) of the latents, for rotary positions.
        text_tokens: length of the text stream, for rotary positions and for splitting.
        sigmas: (rows,) float32, the noise level of each row.
        prefix: like `inputs`, but computed by the quantized blocks before this one; None: the
            block is quantized on full-precision inputs.
    """

    inputs: tuple[mx.array, ...]
    targets: tuple[mx.array, ...]
    modulation: mx.array
    rows_per_image: tuple[int, ...]
    latent_size: tuple[int, int]
    text_tokens: int
    sigmas: mx.array
    prefix: tuple[mx.array, ...] | None = None

    @property
    def entering(self) -> tuple[mx.array, ...]:
        """What the block will read once the blocks before it are quantized, as far as known."""
        return self.inputs if self.prefix is None else self.prefix


def boundary_streams(model: Network, trajectory: Trajectory, step: int) -> dict[str, mx.array]:
    """The streams at every block boundary in one full-precision forward pass, and `modulation`.

    Args:
        step: 0-based; its stored latents go in, so that no step depends on another.

    Returns:
        "mm00.img", "mm00.txt", ..., "out.img" -> (rows, tokens, 1, hidden), evaluated; see the
        module's docstring.

    Raises:
        UserError: a stream is NaN or infinite.
    """
    streams: dict[str, mx.array] = {}

    def note(name: str, arrays: tuple[mx.array, ...]) -> None:
        block, _, is_output = name.partition(".")
        # A block's output is stored as the next block's input; only the last output stays "out".
        prefix = "out" if is_output else block
        for stream in ("out.img", "out.txt", "out.uni"):
            streams.pop(stream, None)
        streams.update(
            {f"{prefix}.{s}": a for s, a in zip(stream_names(block), arrays, strict=False)}
        )

    with boundaries(model, note):
        output = predict(model, *trajectory.at(step))
    streams["modulation"] = model.modulation_inputs(
        trajectory.conditioning.pooled, trajectory.timesteps[step]
    )
    mx.eval(output)
    check_finite(_places(streams), f"at step {step + 1} of {trajectory.num_steps}")
    return streams


def _places(streams: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """The streams by where they arise, in order of computation."""
    places, before, now = {}, "", ""
    for name, array in streams.items():
        boundary, _, stream = name.partition(".")
        if boundary != now:
            before, now = now, boundary
        place = f"{stream} stream behind block {before}" if before else f"first {stream} stream"
        places[f"the {place}" if stream else f"the {name}"] = array
    return places


def join_steps(steps: Iterator[dict[str, mx.array]]) -> dict[str, mx.array]:
    """Rows of several steps under each other."""
    rows = list(steps)
    return {name: mx.concatenate([row[name] for row in rows]) for name in rows[0]}


def read_block(
    files: Sequence[str | Path],
    block_names: Sequence[str],
    block: str,
    prefix: tuple[mx.array, ...] | None = None,
) -> BlockData:
    """Inputs and full-precision outputs of one block; only that block's tensors are read.

    Args:
        files: block_io files, one an image.
        block_names: all blocks of the model, in order of computation.
        block: "mm03" or "uni07".
        prefix: the streams that the quantized blocks before it give (`prefix.prefix_streams`), rows
            as in `files`.
    """
    images = [load_tensors(file, BLOCK_IO) for file in files]
    metadata = load_metadata(files[0], BLOCK_IO)
    text_tokens = int(metadata["text_tokens"])

    def rows(name: str) -> mx.array:
        return mx.concatenate([image[name] for image in images])

    after = [*block_names, "out"][block_names.index(block) + 1]
    if not block.startswith("uni") and f"{after}.uni" in images[0]:
        joined = rows(f"{after}.uni")
        targets: tuple[mx.array, ...] = (joined[:, text_tokens:], joined[:, :text_tokens])
    else:
        present = [f"{after}.{s}" for s in stream_names(block) if f"{after}.{s}" in images[0]]
        targets = tuple(rows(name) for name in present)
    counts = tuple(image["modulation"].shape[0] for image in images)
    # A row is one half of a guided pair, or a whole step of an unguided model.
    sigmas = [
        mx.repeat(image["sigmas"].astype(mx.float32), count // image["sigmas"].size)
        for image, count in zip(images, counts, strict=True)
    ]
    height, width = json.loads(metadata["latent_size"])
    data = BlockData(
        inputs=tuple(rows(f"{block}.{stream}") for stream in stream_names(block)),
        targets=targets,
        modulation=rows("modulation"),
        rows_per_image=counts,
        latent_size=(height, width),
        text_tokens=text_tokens,
        sigmas=mx.concatenate(sigmas),
        prefix=prefix,
    )
    mx.eval(data.inputs, data.targets, data.modulation, data.sigmas)
    return data


def in_parts(rows: np.ndarray, size: int = 16) -> Iterator[np.ndarray]:
    """Some rows at a time, to bound the memory."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def run_block(
    block: Block,
    modulation: Sequence[mx.array],
    rows: mx.array,
    inputs: Sequence[mx.array],
    positions: mx.array | None,
) -> tuple[mx.array, ...]:
    """A block's outputs for some rows, with the weights that it has now.

    Args:
        modulation: adaLN parameters of each stream for all rows.
        rows: (n,) indices.
        inputs: the streams that enter in these rows.
        positions: `positional_encodings`.
    """
    for stream, parameters in zip(block.streams.values(), modulation, strict=True):
        stream.set_modulation(parameters[rows])
    return block(inputs, positions)
