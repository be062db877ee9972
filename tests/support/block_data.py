"""Cached block inputs and outputs of small random models."""

from __future__ import annotations

from pathlib import Path

from ditquant.artifacts import save_tensors
from ditquant.backend import mx
from ditquant.network.blocks import Network
from ditquant.network.calibration import Conditioning, Trajectory
from ditquant.network.sampling import sigma_schedule
from ditquant.weights.block_io import boundary_streams, join_steps

TEXT_TOKENS = 7


def random_trajectory(seed: int, steps: int = 4, dtype: mx.Dtype = mx.float32) -> Trajectory:
    """Noise where latents would be: blocks only need inputs."""
    keys = mx.random.split(mx.random.key(seed), 3)
    sigmas = sigma_schedule(steps, 3.0)
    return Trajectory(
        latents=mx.random.normal((steps + 1, 8, 8, 16), key=keys[0]),
        sigmas=sigmas,
        timesteps=(sigmas[:-1] * 1000).astype(dtype),
        conditioning=Conditioning(
            mx.random.normal((2, TEXT_TOKENS, 32), key=keys[1]).astype(dtype),
            mx.random.normal((2, 32), key=keys[2]).astype(dtype),
        ),
        cfg_weight=4.0,
        prompt="noise",
    )


def write_block_io(
    path: Path, model: Network, seed: int, steps: int = 4, dtype: mx.Dtype = mx.float32
) -> Path:
    """A block_io file of a random trajectory, every step cached."""
    trajectory = random_trajectory(seed, steps, dtype)
    passes = (boundary_streams(model, trajectory, step) for step in range(steps))
    metadata = {"latent_size": [8, 8], "text_tokens": TEXT_TOKENS, "stride": 1}
    save_tensors(
        path,
        {**join_steps(passes), "sigmas": trajectory.sigmas[:steps]},
        "ditquant.block_io",
        metadata,
    )
    return path
