"""Rule list_calibration: the manifest of the calibration images."""

from pathlib import Path

from ditquant.artifacts import load_metadata, write_json
from ditquant.job import run_script
from ditquant.network.calibration import TRAJECTORY
from ditquant.provenance import check_alike
from ditquant.seals import recorded_digest


def main(*, trajectories: list[str], manifest: str) -> None:
    """Writes one entry an image: file, prompt, seed, steps, guidance and digest."""
    check_alike(trajectories, "num_steps", "cfg_weight", "image_size")
    images = []
    for path in trajectories:
        metadata = load_metadata(path, TRAJECTORY)
        images.append(
            {
                "image": Path(path).stem,
                "file": Path(path).name,
                "prompt": metadata["prompt"],
                "seed": int(metadata["seed"]),
                "num_steps": int(metadata["num_steps"]),
                "cfg_weight": float(metadata["cfg_weight"]),
                "digest": recorded_digest(path),
            }
        )
    write_json(manifest, "ditquant.calibration_manifest", {"images": images})


run_script(main, globals())
