"""The file layout is right when DiffusionKit's own loaders give back the same bits."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from demo_model import network, shapes, vocabulary
from ditquant.backend import hub_files, import_diffusionkit, mx
from ditquant.models.layout import clip_to_hub, mmdit_to_single_file, vae_to_single_file

KEY = "argmaxinc/mlx-stable-diffusion-3-medium"
HUB = "argmaxinc/stable-diffusion"


def random_parameters(module, seed: int) -> dict[str, mx.array]:
    """Gives every parameter of a module random values, and returns them."""
    rng = np.random.default_rng(seed)
    values = {
        name: mx.array(rng.normal(size=value.shape).astype(np.float32))
        for name, value in network.parameters(module).items()
    }
    module.load_weights(list(values.items()))
    return values


def assert_same_bits(loaded, expected: dict[str, mx.array]) -> None:
    actual = network.parameters(loaded)
    assert actual.keys() == expected.keys()
    different = [name for name in expected if not mx.array_equal(actual[name], expected[name])]
    assert not different


@pytest.fixture(scope="module")
def networks() -> network.Networks:
    return network.build(network.TINY, vocabulary_size=700, seed=0)


def load_single_file(tensors, folder: Path, config, **names):
    """The tensors in a file, and DiffusionKit's `model_io` ready to load it under `KEY`."""
    path = folder / "model.safetensors"
    mx.save_safetensors(str(path), tensors)
    import_diffusionkit()
    names |= {"LOCAl_SD3_CKPT": str(path), "_CONFIG": {KEY: config}}
    return hub_files(lambda repo, file: "", **names)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_mmdit_survives_diffusionkits_loader(tmp_path, qk_norm):
    config = network.mmdit_config(network.TINY)
    config.use_qk_norm = qk_norm
    from diffusionkit.mlx.mmdit import MMDiT

    expected = random_parameters(MMDiT(config), seed=1)
    with load_single_file(mmdit_to_single_file(expected), tmp_path, config) as model_io:
        loaded = model_io.load_mmdit(KEY, model_key=KEY, low_memory_mode=False)
    assert_same_bits(loaded, expected)


def test_the_missing_key_bias_is_written_as_zeros(networks):
    tensors = mmdit_to_single_file(network.parameters(networks.mmdit))
    hidden = network.TINY["mmdit"]["hidden_size"]
    bias = tensors["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.bias"]
    assert bias.shape == (3 * hidden,)
    assert mx.all(bias[hidden : 2 * hidden] == 0)


def test_both_halves_of_the_vae_survive_in_one_file_with_the_mmdit(tmp_path, networks):
    expected = {
        part: random_parameters(getattr(networks, part), seed)
        for seed, part in enumerate(("encoder", "decoder"), start=2)
    }
    tensors = mmdit_to_single_file(network.parameters(networks.mmdit))
    for part, params in expected.items():
        tensors |= vae_to_single_file(params, part)
    from diffusionkit.mlx.config import VAEDecoderConfig, VAEEncoderConfig

    sizes = network.TINY["vae"]
    with load_single_file(
        tensors,
        tmp_path,
        network.mmdit_config(network.TINY),
        VAEEncoderConfig=lambda: VAEEncoderConfig(**sizes["encoder"]),
        VAEDecoderConfig=lambda: VAEDecoderConfig(**sizes["decoder"]),
    ) as model_io:
        encoder = model_io.load_vae_encoder(KEY)
        decoder = model_io.load_vae_decoder(KEY)
        mmdit = model_io.load_mmdit(KEY, model_key=KEY, low_memory_mode=False)
    assert_same_bits(encoder, expected["encoder"])
    assert_same_bits(decoder, expected["decoder"])
    assert_same_bits(mmdit, network.parameters(networks.mmdit))


def test_text_encoder_and_tokenizer_survive_diffusionkits_loaders(tmp_path, networks):
    expected = random_parameters(networks.text, seed=4)
    (tmp_path / "clip_l").mkdir()
    mx.save_safetensors(str(tmp_path / "clip_l/model.fp16.safetensors"), clip_to_hub(expected))
    text = network.TINY["text"]
    (tmp_path / "clip_l/config.json").write_text(
        json.dumps(
            {
                "architectures": ["CLIPTextModelWithProjection"],
                "num_hidden_layers": text["num_layers"],
                "hidden_size": text["model_dims"],
                "num_attention_heads": text["num_heads"],
                "max_position_embeddings": text["max_length"],
                "vocab_size": 700,
                "projection_dim": network.TINY["mmdit"]["pooled_text_embed_dim"],
            }
        )
    )
    vocabulary.write_vocabulary(tmp_path / "tokenizer_l", shapes.words())
    with hub_files(lambda repo, file: str(tmp_path / file)) as model_io:
        encoder = model_io.load_text_encoder(HUB, model_key="clip_l")
        tokenizer = model_io.load_tokenizer(
            HUB, vocab_key="tokenizer_l_vocab", merges_key="tokenizer_l_merges", pad_with_eos=True
        )
    assert_same_bits(encoder, expected)
    assert len(tokenizer.tokenize("a small red star on a navy background")) == 8 + 2


@pytest.mark.parametrize(
    ("translate", "name"),
    [
        (mmdit_to_single_file, "unified_transformer_blocks.0.transformer_block.attn.o_proj.weight"),
        (lambda params: vae_to_single_file(params, "decoder"), "down_blocks.0.downsample.weight"),
        (clip_to_hub, "layers.0.attention.rotary.weight"),
    ],
)
def test_a_tensor_without_a_place_is_an_error_that_names_it(translate, name):
    with pytest.raises(ValueError, match=re.escape(name)):
        translate({name: mx.zeros((1, 1))})
