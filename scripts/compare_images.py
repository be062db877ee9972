"""Rule compare_images: full precision, a variant and their difference, shown and measured."""

import numpy as np
from PIL import Image

from ditquant import metrics
from ditquant.artifacts import atomic_path, load_metadata, load_tensors, write_json
from ditquant.backend import to_numpy
from ditquant.evaluation.comparison import FACTOR, side_by_side
from ditquant.job import job


def _picture(path: str) -> np.ndarray:
    with Image.open(path) as file:
        return np.asarray(file.convert("RGB"))


def main(
    full_picture: str,
    full_latents: str,
    picture: str,
    latents: str,
    comparison: str,
    numbers: str,
    variant: str,
    prompt_id: str,
) -> None:
    """Writes the comparison and its numbers (psnr in dB, None for equal pictures)."""
    metadata = load_metadata(latents)
    image, reference = _picture(picture), _picture(full_picture)
    psnr = metrics.psnr(image, reference)
    ssim = metrics.ssim(image, reference)
    note = f"PSNR {psnr:.1f} dB   SSIM {ssim:.3f}" if np.isfinite(psnr) else "equal pictures"
    shown = side_by_side(reference, image, metadata["prompt"], variant, note)
    with atomic_path(comparison) as temporary:
        shown.save(temporary)
    error = metrics.relative_error(
        to_numpy(load_tensors(latents)["latents"]), to_numpy(load_tensors(full_latents)["latents"])
    )
    stats = {
        "variant": variant,
        "prompt_id": prompt_id,
        "prompt": metadata["prompt"],
        "seed": int(metadata["seed"]),
        "num_steps": int(metadata["num_steps"]),
        "cfg_weight": float(metadata["cfg_weight"]),
        "model": metadata["model"],
        "amplification": FACTOR,
        "psnr": metrics.finite(psnr),
        "ssim": ssim,
        "latent_relative_error": error,
        "max_absolute_difference": metrics.max_absolute_difference(image, reference),
    }
    write_json(numbers, "ditquant.image_difference", stats)


if "snakemake" in globals():
    with job(snakemake):
        main(
            snakemake.input.full_picture,
            snakemake.input.full_latents,
            snakemake.input.picture,
            snakemake.input.latents,
            snakemake.output.comparison,
            snakemake.output.numbers,
            snakemake.wildcards.variant,
            snakemake.wildcards.prompt,
        )
