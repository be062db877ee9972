"""Rule train_demo_vae: pictures -> weights of the VAE."""

from pathlib import Path

import numpy as np

from demo_model import network, training
from demo_model.data import load_shards
from ditquant.artifacts import save_tensors
from ditquant.backend import mx
from ditquant.job import LOG, run_script


def main(*, output: str, shards: list[str], size: str, options: dict, checkpoint: str) -> None:
    """Trains both halves of the VAE; a checkpoint that is there is continued.

    Args:
        output: safetensors with the averaged weights, under `encoder.` and `decoder.`.
        shards: files of rule train_demo_pictures.
        size: a name in `network.CONFIGS`.
        options: fields of `training.Settings`.
        checkpoint: the file in which the run is kept from stop to stop.
    """
    settings = training.Settings(**options)
    pictures = mx.array(np.concatenate([drawn for drawn, _ in load_shards(shards)]))
    networks = network.build(network.CONFIGS[size], vocabulary_size=1, seed=settings.seed)
    params = training.joined(encoder=networks.encoder, decoder=networks.decoder)
    state = training.fit(
        training.vae_loss(networks),
        params,
        training.draw_pictures(pictures, settings),
        settings,
        Path(checkpoint),
        lambda step, loss: LOG.info("step %d: loss %.4f", step, loss),
    )
    averaged = training.layout_of(params).unflatten(state.average)
    metadata = {"settings": options, "losses": state.losses}
    save_tensors(output, averaged, "ditquant.demo.vae", metadata)
    Path(checkpoint).unlink()  # a finished run has nothing to go on from


run_script(main, globals(), output="output.weights")
