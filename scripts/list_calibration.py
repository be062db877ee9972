"""Rule list_calibration: the manifest of the calibration images."""

from pathlib import Path

from ditquant.artifacts import load_metadata, sha256, write_json
from ditquant.job import job


def main(trajectories: list[str], manifest: str) -> None:
    """Writes one entry an image: file, prompt, seed, steps, guidance and checksum."""
    images = []
    for path in trajectories:
        metadata = load_metadata(path)
        images.append(
            {
                "image": Path(path).stem,
                "file": Path(path).name,
                "prompt": metadata["prompt"],
                "seed": int(metadata["seed"]),
                "num_steps": int(metadata["num_steps"]),
                "cfg_weight": float(metadata["cfg_weight"]),
                "sha256": sha256(path),
            }
        )
    write_json(manifest, "ditquant.calibration_manifest", {"images": images})


if "snakemake" in globals():
    with job(snakemake):
        main(snakemake.input.trajectories, snakemake.output.manifest)
