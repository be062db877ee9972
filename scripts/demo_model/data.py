"""Training data: pictures in shards, and what the trained VAE and the vocabulary make of them.

A shard is drawn from the seed and its own number, so shards are drawn in parallel and drawing more
of them leaves the others as they are. Latents are those of the encoder's mean.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ditquant.backend import hub_files, mx, nn
from ditquant.files import atomic_path
from ditquant.models.text import token_batch

from . import forward
from .network import LATENT_SCALE, LATENT_SHIFT
from .shapes import render, sample_caption
from .training import to_unit

ENCODED_AT_ONCE = 256  # pictures
READERS = 8  # threads; unpacking releases the interpreter


def draw_shard(
    seed: int, shard: int, count: int, held_out: Container[str]
) -> tuple[np.ndarray, list[str]]:
    """Pictures, uint8 (count, 128, 128, 3), and their captions, none of them in `held_out`."""
    rng = np.random.default_rng([seed, shard])
    captions = [sample_caption(rng, held_out) for _ in range(count)]
    pictures = np.stack([render(caption, rng) for caption in captions])
    return pictures, [str(caption) for caption in captions]


def save_shard(path: str | Path, pictures: np.ndarray, captions: Sequence[str]) -> None:
    """Writes a shard, packed: flat colours shrink to a fiftieth."""
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, pictures=pictures, captions=np.array(captions))


def _load_shard(path: str | Path) -> tuple[np.ndarray, list[str]]:
    with np.load(path) as shard:
        return shard["pictures"], shard["captions"].tolist()


def load_shards(paths: Sequence[str | Path]) -> Iterator[tuple[np.ndarray, list[str]]]:
    """(pictures, captions) of each shard, in order, some read ahead."""
    with ThreadPoolExecutor(READERS) as pool:
        for first in range(0, len(paths), READERS):
            yield from pool.map(_load_shard, paths[first : first + READERS])


def load_tokenizer(folder: str | Path, length: int) -> Any:
    """DiffusionKit's CLIP tokenizer over `vocab.json` and `merges.txt` of a folder."""
    with hub_files(lambda repository, file: str(Path(folder) / Path(file).name)) as model_io:
        tokenizer = model_io.load_tokenizer(
            vocab_key="tokenizer_l_vocab", merges_key="tokenizer_l_merges", pad_with_eos=True
        )
    tokenizer.max_length = length
    return tokenizer


def encode_shard(
    encoder: nn.Module, tokenizer: Any, pictures: np.ndarray, captions: Sequence[str]
) -> dict[str, mx.array]:
    """What the MM-DiT is trained on.

    Returns:
        `latents` float16 (n, 64, 64), the normalised latents in patches, and `tokens` int32
        (n, length).
    """
    latents = []
    for start in range(0, len(pictures), ENCODED_AT_ONCE):
        batch = to_unit(mx.array(pictures[start : start + ENCODED_AT_ONCE]))
        mean, _ = encoder(batch).split(2, axis=-1)
        normalised = (mean - LATENT_SHIFT) * LATENT_SCALE
        latents.append(forward.patchify(normalised).astype(mx.float16))
        mx.eval(latents[-1])
    return {"latents": mx.concatenate(latents), "tokens": token_batch(tokenizer, captions)}
