"""Rule generate_image: one prompt, drawn by one variant of the model."""

from ditquant.artifacts import save_tensors
from ditquant.evaluation.pictures import LATENTS, save_picture
from ditquant.evaluation.variants import open_variant
from ditquant.job import job
from ditquant.models.load import DTYPES
from ditquant.models.spec import read_spec
from ditquant.network.calibration import load_conditioning
from ditquant.network.sampling import initial_latents, latent_shape, sample_euler, sigma_schedule
from ditquant.progress import ticking


def main(
    shard: str,
    picture: str,
    latents: str,
    variant: str,
    checkpoint: str | None,
    quant_config: str | None,
    model: dict,
    prompt: dict,
    num_steps: int,
    cfg_weight: float,
    image_size: list[int],
    seed: int,
) -> None:
    """Writes the picture and its final latents (1, h, w, c), in the model's latent format."""
    spec = read_spec(model["name"], model["checkpoint"])
    dtype = DTYPES[model["dtype"]]
    sigmas = sigma_schedule(num_steps, spec.shift)
    height, width = image_size
    start = initial_latents(seed, latent_shape((height, width)), sigmas[0])
    with (
        open_variant(spec, dtype, variant, checkpoint, quant_config) as opened,
        ticking(f"{variant}, seed {seed}", num_steps) as tick,
    ):
        conditioning = load_conditioning([shard], [prompt["row"]], cfg_weight > 0, opened.dtype)
        final = sample_euler(
            opened.network,
            start,
            sigmas,
            conditioning.tokens,
            conditioning.pooled,
            cfg_weight,
            lambda step: tick(),
            opened.before_step,
        )
    metadata = {
        "variant": variant, "prompt": prompt["text"], "seed": seed,
        "negative_prompt": prompt["negative"], "cfg_weight": cfg_weight, "num_steps": num_steps,
        "image_size": list(image_size), "model": model["name"], "dtype": model["dtype"],
    }  # fmt: skip
    save_tensors(latents, {"latents": final}, LATENTS, metadata)
    save_picture(picture, final, spec, dtype)


if "snakemake" in globals():
    with job(snakemake):
        params = snakemake.params
        main(
            snakemake.input.conditioning,
            snakemake.output.picture,
            snakemake.output.latents,
            snakemake.wildcards.variant,
            snakemake.input.get("checkpoint"),
            snakemake.input.get("quant_config"),
            params.model,
            params.prompt,
            params.num_steps,
            params.cfg_weight,
            params.image_size,
            params.seed,
        )
