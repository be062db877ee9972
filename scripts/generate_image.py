"""Rule generate_image: one prompt, drawn by one variant of the model."""

from ditquant.artifacts import save_tensors
from ditquant.evaluation.pictures import LATENTS, save_picture
from ditquant.evaluation.variants import open_variant
from ditquant.job import run_script
from ditquant.models.load import DTYPES
from ditquant.models.spec import Model
from ditquant.network.calibration import Prompt, load_conditioning
from ditquant.network.sampling import initial_latents, latent_shape, sample_euler
from ditquant.progress import ticking


def main(
    *,
    conditioning: str,
    picture: str,
    latents: str,
    variant: str,
    model: Model,
    prompt: Prompt,
    num_steps: int,
    cfg_weight: float,
    image_size: list[int],
    seed: int,
    checkpoint: str | None = None,
    quant_config: str | None = None,
) -> None:
    """Writes the picture and its final latents (1, h, w, c), in the model's latent format."""
    spec, dtype = model.spec, DTYPES[model.dtype]
    with (
        open_variant(spec, dtype, variant, checkpoint, quant_config) as opened,
        ticking(f"{variant}, seed {seed}", num_steps) as tick,
    ):
        sigmas = opened.network.sigmas(num_steps)
        texts = load_conditioning([conditioning], [prompt.row], cfg_weight > 0, opened.dtype)
        final = sample_euler(
            opened.network,
            initial_latents(seed, latent_shape(image_size), sigmas[0]),
            sigmas,
            texts.tokens,
            texts.pooled,
            cfg_weight,
            lambda step: tick(),
            opened.before_step,
        )
    metadata = {
        "variant": variant, "prompt": prompt.text, "seed": seed,
        "negative_prompt": prompt.negative, "cfg_weight": cfg_weight, "num_steps": num_steps,
        "image_size": image_size, "model": model.name, "dtype": model.dtype,
    }  # fmt: skip
    save_tensors(latents, {"latents": final}, LATENTS, metadata)
    save_picture(picture, final, spec, dtype)


run_script(main, globals(), prompt="params.prompt")
