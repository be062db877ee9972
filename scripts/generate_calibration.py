"""Rule generate_calibration: one full-precision trajectory and its picture."""

from ditquant.backend import mx
from ditquant.evaluation.pictures import save_picture
from ditquant.job import job
from ditquant.models.load import DTYPES
from ditquant.models.spec import read_spec
from ditquant.network.calibration import Trajectory, load_conditioning, save_trajectory
from ditquant.network.diffusionkit import load_network
from ditquant.network.sampling import initial_latents, latent_shape, sample_euler, sigma_schedule
from ditquant.progress import ticking


def main(
    shard: str,
    trajectory: str,
    preview: str,
    model: dict,
    prompt: dict,
    num_steps: int,
    cfg_weight: float,
    image_size: list[int],
    seed: int,
) -> None:
    """Writes latents of every step (steps + 1, h, w, c), sigmas, timesteps and the conditioning,
    and the decoded picture."""
    spec = read_spec(model["name"], model["checkpoint"])
    dtype = DTYPES[model["dtype"]]
    conditioning = load_conditioning([shard], [prompt["row"]], cfg_weight > 0, dtype)
    sigmas = sigma_schedule(num_steps, spec.shift)
    height, width = image_size
    start = initial_latents(seed, latent_shape((height, width)), sigmas[0])
    latents, timesteps = [], []
    network = load_network(spec, dtype)
    with ticking(f"image from seed {seed}", num_steps) as tick:

        def observe(step) -> None:
            latents.append(step.latents)
            timesteps.append(step.timestep)
            tick()

        final = sample_euler(
            network, start, sigmas, conditioning.tokens, conditioning.pooled, cfg_weight, observe
        )
    drawn = Trajectory(
        latents=mx.concatenate([*latents, final]),
        sigmas=sigmas,
        timesteps=mx.stack(timesteps),
        conditioning=conditioning,
        cfg_weight=cfg_weight,
        prompt=prompt["text"],
    )
    record = {
        "seed": seed, "negative_prompt": prompt["negative"],
        "num_steps": num_steps, "image_size": list(image_size), "model": model["name"],
        "dtype": model["dtype"],
    }  # fmt: skip
    save_trajectory(trajectory, drawn, record)
    save_picture(preview, final, spec, dtype)


if "snakemake" in globals():
    with job(snakemake):
        params = snakemake.params
        main(
            snakemake.input.conditioning,
            snakemake.output.trajectory,
            snakemake.output.preview,
            params.model,
            params.prompt,
            params.num_steps,
            params.cfg_weight,
            params.image_size,
            params.seed,
        )
