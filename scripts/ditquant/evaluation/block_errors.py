"""How far every block's output is from full precision's, along the schedule.

Teacher-forced: at each measured step the model starts from full precision's latents, so a block's
error is what the blocks up to it made of one step's input, and no earlier step is in it.

Full precision and the variant are never in memory together: the reference's streams are stored. Of
the first few captions (`BLOCK_CAPTIONS`), of the prompt's half of the guided pair, and at so few
tokens (`BLOCK_TOKENS`) that the file stays small: 14 MB for the demo, 0.26 GB for SD3-medium at
512 x 512 in float16. The pass is one of its own, after the pictures, so that it is neither in the
time of a step nor in the peak memory that an evaluation states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend import mx, to_numpy
from ..finite import check_finite
from ..metrics import decibels
from ..network.blocks import Network, boundaries
from ..network.calibration import load_conditioning
from ..network.sampling import BeforeStep, predict
from .trajectories import Setting, kept_steps

REFERENCE_BLOCKS = "ditquant.reference_blocks"
BLOCK_CAPTIONS = 4
BLOCK_TOKENS = 64


def sampled_tokens(count: int) -> list[int]:
    """At most `BLOCK_TOKENS` of `count` positions of a stream, ascending; always the same ones.

    They are drawn at random and not evenly spaced, which would pick a few columns of the picture.
    """
    if count <= BLOCK_TOKENS:
        return list(range(count))
    chosen = np.random.default_rng(0).choice(count, BLOCK_TOKENS, replace=False)
    return sorted(chosen.tolist())


@contextmanager
def _watched(network: Network, streams: dict[str, mx.array]) -> Iterator[None]:
    """Within the context a forward pass puts each block's sampled outputs into `streams`."""
    names = {block.name: tuple(block.streams) for block in network.blocks}

    def note(name: str, arrays: tuple[mx.array, ...]) -> None:
        block, _, is_output = name.partition(".")
        if not is_output:
            return
        # Behind the last block of SD3 there is no text stream.
        for stream, array in zip(names[block], arrays, strict=False):
            tokens = mx.array(sampled_tokens(array.shape[1]))
            streams[f"{block}.{stream}"] = mx.take(array[:, :, 0], tokens, axis=1)

    with boundaries(network, note):
        yield


@dataclass(frozen=True)
class Outputs:
    """What all blocks gave in one forward pass.

    Attributes:
        captions: which of the setting's captions were in the batch.
        column: which of the measured steps it was.
        streams: "mm00.img", "mm00.txt", ... -> (captions, tokens, hidden), evaluated.
    """

    captions: slice
    column: int
    streams: dict[str, mx.array]


def _batches(setting: Setting) -> list[slice]:
    """The first `BLOCK_CAPTIONS` captions, as many at once as are drawn at once."""
    count = min(BLOCK_CAPTIONS, len(setting.captions))
    size = setting.batch_size
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def output_streams(
    network: Network,
    before_step: BeforeStep,
    setting: Setting,
    latents: np.ndarray,
    sigmas: np.ndarray,
    dtype: mx.Dtype,
) -> Iterator[Outputs]:
    """The sampled outputs of all blocks, one forward pass after the other.

    Args:
        latents: (captions, steps, h, w, channels), the reference's at the measured steps.
        sigmas: the whole schedule.
        dtype: of the network's activations.

    Yields:
        For each batch of the first captions, the measured steps in order.

    Raises:
        UserError: a stream is NaN or infinite.
    """
    schedule = mx.array(sigmas)
    timesteps = network.timesteps(schedule, dtype)
    streams: dict[str, mx.array] = {}
    with _watched(network, streams):
        for rows in _batches(setting):
            conditioning = load_conditioning(setting.shards[rows], setting.rows[rows], False, dtype)
            for column, step in enumerate(kept_steps(setting.num_steps)):
                before_step(step, float(sigmas[step]))
                predict(
                    network,
                    mx.array(latents[rows, column]),
                    schedule[step],
                    timesteps[step],
                    conditioning.tokens,
                    conditioning.pooled,
                    cfg_weight=0.0,
                )
                named = {f"the stream {name}": array for name, array in streams.items()}
                check_finite(named, f"behind its block at step {step + 1}")
                yield Outputs(rows, column, dict(streams))
                streams.clear()


def stacked(outputs: Iterable[Outputs]) -> dict[str, mx.array]:
    """What `output_streams` yields, as one (captions, steps, tokens, hidden) array a stream."""
    batches: dict[int, list[dict[str, mx.array]]] = {}
    for output in outputs:
        batches.setdefault(output.captions.start, []).append(output.streams)
    names = next(iter(batches.values()))[0]
    return {
        name: mx.concatenate(
            [mx.stack([streams[name] for streams in steps], axis=1) for steps in batches.values()]
        )
        for name in names
    }


def num_passes(setting: Setting) -> int:
    """How many forward passes `output_streams` makes."""
    return len(_batches(setting)) * len(kept_steps(setting.num_steps))


def block_sqnr(
    outputs: Iterable[Outputs],
    reference: Mapping[str, mx.array],
    tick: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Signal to quantization noise of every block's output streams, by measured step.

        10 log10(sum |y|^2 / sum |y_q - y|^2), summed over captions, tokens and channels

    Args:
        outputs: of the variant, see `output_streams`.
        reference: of full precision, see `stacked`.
        tick: called after each forward pass.

    Returns:
        captions, tokens (at most, of a stream) and streams: "mm00.img" -> dB of every measured
        step, None where nothing was lost.
    """
    # By name is in order of computation; a file gives its tensors in any.
    reference = dict(sorted(reference.items()))
    captions, steps = next(iter(reference.values())).shape[:2]
    signal = {name: np.zeros(steps) for name in reference}
    noise = {name: np.zeros(steps) for name in reference}
    for output in outputs:
        for name, array in output.streams.items():
            full = to_numpy(reference[name][output.captions, output.column]).astype(np.float64)
            error = to_numpy(array).astype(np.float64) - full
            signal[name][output.column] += np.sum(full**2)
            noise[name][output.column] += np.sum(error**2)
        tick()
    return {
        "captions": captions,
        "tokens": BLOCK_TOKENS,
        "streams": {
            name: [decibels(*pair) for pair in zip(signal[name], noise[name], strict=True)]
            for name in reference
        },
    }
