"""Rule generate_calibration: one full-precision trajectory and its picture."""

from ditquant.backend import mx
from ditquant.evaluation.pictures import save_picture
from ditquant.job import run_script
from ditquant.models.load import DTYPES
from ditquant.models.spec import Model
from ditquant.network.calibration import Prompt, Trajectory, load_conditioning, save_trajectory
from ditquant.network.diffusionkit import load_network
from ditquant.network.sampling import Step, initial_latents, latent_shape, sample_euler
from ditquant.progress import ticking


def main(
    *,
    conditioning: str,
    trajectory: str,
    preview: str,
    model: Model,
    prompt: Prompt,
    num_steps: int,
    cfg_weight: float,
    image_size: list[int],
    seed: int,
) -> None:
    """Writes latents of every step (steps + 1, h, w, c), sigmas, timesteps and the conditioning,
    and the decoded picture."""
    dtype = DTYPES[model.dtype]
    texts = load_conditioning([conditioning], [prompt.row], cfg_weight > 0, dtype)
    network = load_network(model.spec, dtype)
    sigmas = network.sigmas(num_steps)
    start = initial_latents(seed, latent_shape(image_size), sigmas[0])
    latents, timesteps = [], []
    with ticking(f"image from seed {seed}", num_steps) as tick:

        def observe(step: Step) -> None:
            latents.append(step.latents)
            timesteps.append(step.timestep)
            tick()

        final = sample_euler(
            network, start, sigmas, texts.tokens, texts.pooled, cfg_weight, observe
        )
    drawn = Trajectory(
        latents=mx.concatenate([*latents, final]),
        sigmas=sigmas,
        timesteps=mx.stack(timesteps),
        conditioning=texts,
        cfg_weight=cfg_weight,
        prompt=prompt.text,
    )
    record = {
        "seed": seed, "negative_prompt": prompt.negative,
        "num_steps": num_steps, "image_size": image_size, "model": model.name,
        "dtype": model.dtype,
    }  # fmt: skip
    save_trajectory(trajectory, drawn, record)
    save_picture(preview, final, model.spec, dtype)


run_script(main, globals())
