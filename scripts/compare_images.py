"""Rule compare_images: full precision, a variant and their difference, shown and measured."""

import numpy as np

from ditquant import metrics
from ditquant.artifacts import load_metadata, load_tensors, write_file, write_json
from ditquant.backend import to_numpy
from ditquant.evaluation.comparison import FACTOR, side_by_side
from ditquant.evaluation.pictures import LATENTS, png_bytes, read_picture
from ditquant.job import run_script
from ditquant.provenance import check_alike


def main(
    *,
    full_picture: str,
    full_latents: str,
    picture: str,
    latents: str,
    comparison: str,
    numbers: str,
    variant: str,
    prompt: str,
) -> None:
    """Writes the comparison and its numbers (psnr in dB, None for equal pictures)."""
    check_alike([full_latents, latents], "prompt", "seed", "num_steps", "cfg_weight", "image_size")
    metadata = load_metadata(latents, LATENTS)
    image, reference = read_picture(picture), read_picture(full_picture)
    psnr = metrics.psnr(image, reference)
    ssim = metrics.ssim(image, reference)
    note = f"PSNR {psnr:.1f} dB   SSIM {ssim:.3f}" if np.isfinite(psnr) else "equal pictures"
    shown = side_by_side(reference, image, metadata["prompt"], variant, note)
    write_file(comparison, png_bytes(shown), "ditquant.comparison")
    error = metrics.relative_error(
        *(to_numpy(load_tensors(path, LATENTS)["latents"]) for path in (latents, full_latents))
    )
    stats = {
        "variant": variant,
        "prompt_id": prompt,
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


run_script(main, globals())
