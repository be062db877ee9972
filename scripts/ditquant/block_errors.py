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

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from .backend import mx, nn, to_numpy
from .blocks import boundaries, walk_blocks
from .calibration import load_conditioning
from .metrics import decibels
from .sampling import predict
from .trajectories import BeforeStep, Setting, measured_steps

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
def _watched(network: nn.Module, streams: dict[str, mx.array]) -> Iterator[None]:
    """Within the context a forward pass puts each block's sampled outputs into `streams`."""
    names = {block.name: tuple(block.streams) for block in walk_blocks(network)}

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


def output_streams(
    network: nn.Module,
    before_step: BeforeStep,
    setting: Setting,
    latents: np.ndarray,
    sigmas: np.ndarray,
    dtype: mx.Dtype,
) -> Iterator[dict[str, mx.array]]:
    """The sampled outputs of all blocks, one forward pass after the other.

    Args:
        latents: (captions, steps, h, w, channels), the reference's at the measured steps.
        sigmas: the whole schedule.
        dtype: of the network's activations.

    Yields:
        For each of the first `BLOCK_CAPTIONS` captions and each measured step, step by step and
        then the next caption: "mm00.img", "mm00.txt", ... -> (tokens, hidden), evaluated.
    """
    schedule = mx.array(sigmas)
    timesteps = (schedule * 1000).astype(dtype)
    streams: dict[str, mx.array] = {}
    with _watched(network, streams):
        for caption in range(min(BLOCK_CAPTIONS, len(setting.captions))):
            one = slice(caption, caption + 1)
            conditioning = load_conditioning(setting.shards[one], setting.rows[one], False, dtype)
            for column, step in enumerate(measured_steps(setting.num_steps)):
                before_step(step, float(sigmas[step]))
                predict(
                    network,
                    mx.array(latents[one, column]),
                    schedule[step],
                    timesteps[step],
                    conditioning.tokens,
                    conditioning.pooled,
                    cfg_weight=0.0,
                )
                mx.eval(streams)
                yield {name: array[0] for name, array in streams.items()}
                streams.clear()


def stacked(outputs: Iterator[dict[str, mx.array]], setting: Setting) -> dict[str, mx.array]:
    """What `output_streams` yields, as one (captions, steps, tokens, hidden) array a stream."""
    rows = list(outputs)
    steps = len(measured_steps(setting.num_steps))
    arrays = {name: mx.stack([row[name] for row in rows]) for name in rows[0]}
    return {name: array.reshape(-1, steps, *array.shape[1:]) for name, array in arrays.items()}


def block_sqnr(
    outputs: Iterator[Mapping[str, mx.array]],
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
    for index, streams in enumerate(outputs):
        caption, step = divmod(index, steps)
        for name, array in streams.items():
            full = to_numpy(reference[name][caption, step]).astype(np.float64)
            signal[name][step] += np.sum(full**2)
            noise[name][step] += np.sum((to_numpy(array).astype(np.float64) - full) ** 2)
        tick()
    return {
        "captions": captions,
        "tokens": BLOCK_TOKENS,
        "streams": {
            name: [decibels(*pair) for pair in zip(signal[name], noise[name], strict=True)]
            for name in reference
        },
    }
