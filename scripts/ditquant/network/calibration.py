"""Files of the calibration: conditioning and trajectories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..artifacts import load_metadata, load_tensors, save_tensors
from ..backend import mx

CONDITIONING = "ditquant.conditioning"
TRAJECTORY = "ditquant.calibration"


@dataclass(frozen=True)
class Conditioning:
    """What the MM-DiT reads beside the latents.

    Attributes:
        tokens: (2N, tokens, channels), N prompts and then N negative prompts; (N, ...) unguided.
        pooled: (2N, channels) or (N, channels).
    """

    tokens: mx.array
    pooled: mx.array


@dataclass(frozen=True)
class Prompt:
    """What a job knows of its prompt.

    Attributes:
        text, negative: the prompt and the negative one.
        row: of the prompt's conditioning in its shard.
    """

    text: str
    negative: str
    row: int

    @classmethod
    def from_params(cls, parameters: Mapping[str, Any]) -> Prompt:
        return cls(**parameters)


def load_conditioning(
    shards: Sequence[str | Path], rows: Sequence[int], guided: bool, dtype: mx.Dtype
) -> Conditioning:
    """Conditioning of N prompts, prompt i from row `rows[i]` of shard `shards[i]`."""
    files = {str(shard): load_tensors(shard, CONDITIONING) for shard in dict.fromkeys(shards)}
    picked = [(files[str(shard)], row) for shard, row in zip(shards, rows, strict=True)]
    tokens = [file["conditioning"][row : row + 1] for file, row in picked]
    pooled = [file["pooled"][row : row + 1] for file, row in picked]
    if guided:
        tokens += [file["negative_conditioning"] for file, _ in picked]
        pooled += [file["negative_pooled"] for file, _ in picked]
    return Conditioning(mx.concatenate(tokens).astype(dtype), mx.concatenate(pooled).astype(dtype))


@dataclass(frozen=True)
class Trajectory:
    """One calibration image's path from noise to latents.

    Attributes:
        latents: (steps + 1, h, w, channels) float32; the last row is the final latents.
        sigmas: (steps + 1,) float32.
        timesteps: (steps,) in the model's dtype.
        conditioning: of this image.
        cfg_weight: of the guidance; not positive: unguided.
        prompt: for people.
    """

    latents: mx.array
    sigmas: mx.array
    timesteps: mx.array
    conditioning: Conditioning
    cfg_weight: float
    prompt: str

    @property
    def num_steps(self) -> int:
        return int(self.timesteps.shape[0])

    def at(self, step: int) -> tuple[mx.array, mx.array, mx.array, mx.array, mx.array, float]:
        """What `sampling.predict` and `velocity_at` take behind the model, to repeat a step."""
        return (
            self.latents[step : step + 1],
            self.sigmas[step],
            self.timesteps[step],
            self.conditioning.tokens,
            self.conditioning.pooled,
            self.cfg_weight,
        )


def load_trajectory(path: str | Path) -> Trajectory:
    """Reads what `generate_calibration` wrote."""
    tensors, metadata = load_tensors(path, TRAJECTORY), load_metadata(path, TRAJECTORY)
    return Trajectory(
        latents=tensors["latents"],
        sigmas=tensors["sigmas"],
        timesteps=tensors["timesteps"],
        conditioning=Conditioning(tensors["conditioning"], tensors["pooled"]),
        cfg_weight=float(metadata["cfg_weight"]),
        prompt=metadata["prompt"],
    )


def save_trajectory(
    path: str | Path, trajectory: Trajectory, record: Mapping[str, Any] | None = None
) -> None:
    """Writes what `load_trajectory` reads; `record` goes to the file's metadata too."""
    tensors = {
        "latents": trajectory.latents,
        "sigmas": trajectory.sigmas,
        "timesteps": trajectory.timesteps,
        "conditioning": trajectory.conditioning.tokens,
        "pooled": trajectory.conditioning.pooled,
    }
    metadata = {"prompt": trajectory.prompt, "cfg_weight": trajectory.cfg_weight}
    save_tensors(path, tensors, TRAJECTORY, {**(record or {}), **metadata})
