"""Rule train_demo_export: trained weights -> a model folder as in resources/demo."""

import json

from demo_model import network, shapes, training
from demo_model.export import export_model
from ditquant.artifacts import load_metadata, load_tensors
from ditquant.backend import describe_device
from ditquant.job import run_script

VAE, MMDIT = "ditquant.demo.vae", "ditquant.demo.mmdit"


def main(*, folder: str, vae: str, mmdit: str, size: str, pictures: int) -> None:
    """Joins the two weight files; their settings and last losses go into `config.json`.

    Args:
        folder: where the model is written.
        vae: file of rule train_demo_vae.
        mmdit: file of rule train_demo_mmdit.
        size: a name in `network.CONFIGS`.
        pictures: number of training pictures, for the record.
    """
    tensors = dict(load_tensors(vae, VAE)) | dict(load_tensors(mmdit, MMDIT))
    record: dict = {"pictures": pictures, "device": describe_device()}
    for part, path, kind in (("vae", vae, VAE), ("mmdit", mmdit, MMDIT)):
        metadata = load_metadata(path, kind)
        losses = json.loads(metadata["losses"])
        record[part] = {
            "settings": json.loads(metadata["settings"]),
            "loss": round(losses[-1][1], 5),
        }
    parts = training.split_parameters(tensors)
    export_model(folder, "demo", network.CONFIGS[size], parts, shapes.words(), record)


run_script(main, globals())
