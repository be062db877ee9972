"""Rule train_demo_mmdit: latents and tokens -> weights of the MM-DiT and its text encoder."""

import json
from pathlib import Path

from demo_model import network, training
from ditquant.artifacts import load_tensors, save_tensors
from ditquant.job import LOG, run_script


def main(
    *, output: str, latents: str, tokenizer: str, size: str, stages: list[dict], checkpoints: str
) -> None:
    """Trains both networks together; checkpoints that are there are continued.

    A stage starts from the averaged weights of the one before it, with a new optimizer.

    Args:
        output: safetensors with the averaged weights, under `mmdit.` and `text.`.
        latents: file of rule train_demo_latents.
        tokenizer: folder of that rule's vocabulary.
        size: a name in `network.CONFIGS`.
        stages: fields of `training.Settings`, one after the other.
        checkpoints: the folder in which the run is kept from stop to stop, a file a stage.
    """
    config = network.CONFIGS[size]
    data = load_tensors(latents, "ditquant.demo.latents")
    words = json.loads((Path(tokenizer) / "vocab.json").read_text("utf-8"))
    networks = network.build(config, vocabulary_size=len(words), seed=stages[0]["seed"])
    params = training.joined(mmdit=networks.mmdit, text=networks.text)
    kept = [Path(checkpoints) / f"mmdit-{number}.safetensors" for number in range(len(stages))]
    losses: list[tuple[int, float]] = []
    for number, options in enumerate(stages):
        LOG.info("stage %d: %s", number, options)
        settings = training.Settings(**options)
        state = training.fit(
            training.flow_loss(config),
            params,
            training.draw_latents(data["latents"], data["tokens"], data["empty"], settings),
            settings,
            kept[number],
            lambda step, loss: LOG.info("step %d: loss %.4f", step, loss),
        )
        params = training.layout_of(params).unflatten(state.average)
        losses += state.losses
    metadata = {"settings": stages, "losses": losses}
    save_tensors(output, params, "ditquant.demo.mmdit", metadata)
    for finished in kept:  # there is nothing to go on from
        finished.unlink()


run_script(main, globals(), output="output.weights")
