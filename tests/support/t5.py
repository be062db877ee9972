"""A small random T5 in the files of the real one: the encoder, its configuration, its tokenizer."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import sentencepiece

from demo_model.shapes import words
from ditquant.artifacts import save_tensors
from ditquant.backend import import_diffusionkit, mx
from ditquant.models.t5 import REPOSITORY, read_config

from .models import TEXT, parameters, snapshot_of

# As google/t5-v1_1-xxl has it, but for the sizes; 4096 channels are what SD3 reads.
CONFIG = {
    "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "vocab_size": 300,
    "d_model": 4096, "d_kv": 8, "d_ff": 24, "num_heads": 4, "num_layers": 2,
    "num_decoder_layers": 2, "relative_attention_num_buckets": 32, "layer_norm_epsilon": 1e-06,
    "feed_forward_proj": "gated-gelu", "is_encoder_decoder": True, "decoder_start_token_id": 0,
    "eos_token_id": 1, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
_LAYER = r"encoder\.layers\.(\d+)\."
_TO_LAYER = r"encoder.block.\1.layer."
# DiffusionKit's names -> those of the published file.
_RULES = [
    (r"wte\.weight", "encoder.embed_tokens.weight"),
    (r"encoder\.ln\.weight", "encoder.final_layer_norm.weight"),
    (
        r"encoder\.relative_attention_bias\.embeddings\.weight",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    ),
    *(
        (
            _LAYER + rf"attention\.{name}_proj\.weight",
            f"{_TO_LAYER}0.SelfAttention.{name[0]}.weight",
        )
        for name in ("query", "key", "value", "out")
    ),
    (_LAYER + r"ln1\.weight", f"{_TO_LAYER}0.layer_norm.weight"),
    (_LAYER + r"ln2\.weight", f"{_TO_LAYER}1.layer_norm.weight"),
    (_LAYER + r"dense\.(\w+)\.weight", rf"{_TO_LAYER}1.DenseReluDense.\2.weight"),
]


def published_names(tensors: dict[str, mx.array]) -> dict[str, mx.array]:
    named = {}
    for name, tensor in tensors.items():
        (match,) = [(m, to) for rule, to in _RULES if (m := re.fullmatch(rule, name))]
        named[match[0].expand(match[1])] = tensor
    return named | {"shared.weight": named["encoder.embed_tokens.weight"]}


def build_t5(config: Path, seed: int = 0):
    """DiffusionKit's encoder with random weights, whose scores are of unit size."""
    import_diffusionkit()
    mx.random.seed(seed)
    t5 = importlib.import_module("diffusionkit.mlx.t5")
    encoder = t5.SD3T5Encoder(read_config(config), low_memory_mode=False)
    for layer in encoder.encoder.layers:
        layer.attention.query_proj.weight = layer.attention.query_proj.weight * 2
    mx.eval(encoder.parameters())
    return encoder


def write_t5(hub: Path, seed: int = 0) -> Path:
    """Puts the files where the hub's cache has them; returns that of the encoder.

    Args:
        hub: the cache folder (HF_HUB_CACHE) that `models.write_sd3` has made.
    """
    t5 = snapshot_of(hub, REPOSITORY)
    (t5 / "config.json").write_text(json.dumps(CONFIG))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sorted(words())), model_prefix=str(t5 / "spiece"), vocab_size=90,
        model_type="unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False,
        minloglevel=2,
    )  # fmt: skip
    encoder = snapshot_of(hub, TEXT) / "t5" / "t5xxl.safetensors"
    tensors = published_names(parameters(build_t5(t5 / "config.json", seed)))
    save_tensors(
        encoder,
        {name: tensor.astype(mx.float16) for name, tensor in tensors.items()},
        "ditquant.model_weights",
    )
    return encoder
