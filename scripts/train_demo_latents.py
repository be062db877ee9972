"""Rule train_demo_latents: pictures and captions -> latents and tokens, what the MM-DiT sees."""

from demo_model import data, network, shapes, training, vocabulary
from ditquant.artifacts import load_tensors, save_tensors
from ditquant.backend import mx
from ditquant.job import LOG, run_script


def main(*, output: str, tokenizer_folder: str, shards: list[str], weights: str, size: str) -> None:
    """Encodes every shard with the trained VAE, and its captions with a new vocabulary.

    Args:
        output: safetensors with `latents` float16 (n, 64, 64), `tokens` (n, length) and `empty`
            (length,), the tokens of the empty caption.
        tokenizer_folder: where `vocab.json` and `merges.txt` are written.
        shards: files of rule train_demo_pictures.
        weights: file of rule train_demo_vae.
        size: a name in `network.CONFIGS`.
    """
    config = network.CONFIGS[size]
    vocabulary.write_vocabulary(tokenizer_folder, shapes.words())
    tokenizer = data.load_tokenizer(tokenizer_folder, config["text"]["max_length"])
    encoder = network.build(config, vocabulary_size=1, seed=0).encoder
    encoder.load_weights(
        list(
            training.split_parameters(load_tensors(weights, "ditquant.demo.vae"))["encoder"].items()
        )
    )
    training.with_row_linears(encoder)
    encoded = []
    for pictures, captions in data.load_shards(shards):
        encoded.append(data.encode_shard(encoder, tokenizer, pictures, captions))
        mx.eval(encoded[-1])
        LOG.info("encoded %d pictures", sum(len(part["tokens"]) for part in encoded))
    tensors = {
        name: mx.concatenate([part[name] for part in encoded]) for name in ("latents", "tokens")
    }
    tensors["empty"] = data.token_batch(tokenizer, [""])[0]
    save_tensors(output, tensors, "ditquant.demo.latents")


run_script(main, globals(), output="output.latents", tokenizer_folder="output.tokenizer")
