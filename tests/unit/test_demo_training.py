"""Training: the fast forward passes are DiffusionKit's, and a stopped run leaves no trace."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

import train_demo_export
import train_demo_latents
import train_demo_mmdit
import train_demo_pictures
import train_demo_vae
from demo_model import data, forward, network, optimizer, training
from demo_model.prompts import to_csv
from ditquant.backend import mx
from ditquant.models.load import load_vae_decoder
from ditquant.models.spec import read_spec
from ditquant.models.text import encode_texts
from ditquant.network.diffusionkit import load_network
from ditquant.network.sampling import (
    decode,
    initial_latents,
    latent_shape,
    sample_euler,
    sigma_schedule,
)

CONFIG = network.TINY
HEADS = CONFIG["mmdit"]["num_heads"]
OPTIONS = {
    "steps": 6,
    "batch_size": 2,
    "learning_rate": 1e-3,
    "warmup": 2,
    "weight_decay": 0.01,
    "ema": 0.9,
    "seed": 1,
    "checkpoint_every": 2,
    "half_precision": False,
}
SETTINGS = training.Settings(**OPTIONS)


def randomised(module, seed: int):
    """A module whose every parameter is random: zero-initialised ones would hide mistakes."""
    rng = np.random.default_rng(seed)
    values = {
        name: mx.array(0.2 * rng.normal(size=value.shape).astype(np.float32))
        for name, value in network.parameters(module).items()
    }
    module.load_weights(list(values.items()))
    return module


@pytest.fixture
def networks() -> network.Networks:
    return network.build(CONFIG, vocabulary_size=50, seed=0)


class OneModulation(dict):
    """Answers every time step with the same modulation (DiffusionKit looks them up by step)."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def __getitem__(self, key):
        return self.value


def kit_velocity(mmdit, latents, sigma: float, context, pooled):
    """The velocity by DiffusionKit's own forward pass; one noise level for the batch."""
    steps = mx.full((len(latents),), 1000 * sigma)
    condition = mmdit.y_embedder(pooled)[:, None, None] + mmdit.t_embedder(steps)
    streams = [mmdit.final_layer]
    for block in mmdit.multimodal_transformer_blocks:
        streams += [block.image_transformer_block, block.text_transformer_block]
    for stream in streams:
        modulation = OneModulation(stream.adaLN_modulation(condition))
        object.__setattr__(stream, "_modulation_params", modulation)
    return mmdit(latents, context[:, :, None], mx.array([1000 * sigma]))


def test_velocity_is_that_of_diffusionkits_mmdit(networks):
    mmdit = randomised(networks.mmdit, 1)
    rng = np.random.default_rng(2)
    latents, context, pooled = (
        mx.array(rng.normal(size=shape).astype(np.float32))
        for shape in ((3, 16, 16, 16), (3, 20, 8), (3, 8))
    )
    for sigma in (0.1, 0.9):
        expected = kit_velocity(mmdit, latents, sigma, context, pooled)
        patches = forward.patchify(latents)
        levels = mx.full((3,), sigma)
        actual = forward.velocity(
            network.parameters(mmdit), HEADS, patches, levels, context, pooled
        )
        assert mx.allclose(actual, forward.patchify(expected), rtol=1e-4, atol=1e-5)


def test_every_picture_of_a_batch_has_its_own_noise_level(networks):
    params = network.parameters(randomised(networks.mmdit, 1))
    patches = mx.broadcast_to(mx.random.normal((1, 64, 64), key=mx.random.key(0)), (2, 64, 64))
    context, pooled = mx.ones((2, 20, 8)), mx.ones((2, 8))

    def run(levels):
        return forward.velocity(params, HEADS, patches, mx.array(levels), context, pooled)

    mixed = run([0.2, 0.8])
    assert mx.allclose(mixed[0], run([0.2, 0.2])[0], rtol=1e-4, atol=1e-5)
    assert mx.allclose(mixed[1], run([0.8, 0.8])[1], rtol=1e-4, atol=1e-5)
    assert not mx.allclose(mixed[0], mixed[1], rtol=1e-2)


def test_text_encoding_is_that_of_diffusionkits_clip(networks):
    text = randomised(networks.text, 3)
    tokens = np.random.default_rng(4).integers(0, 49, (3, 20))
    tokens[:, 7:] = 49
    output = text(mx.array(tokens))
    params = network.parameters(text)
    context, pooled = forward.encode_text(params, CONFIG["text"]["num_heads"], mx.array(tokens))
    assert mx.allclose(context, output.hidden_states[-2], rtol=1e-4, atol=1e-5)
    assert mx.allclose(pooled, output.pooled_output, rtol=1e-4, atol=1e-5)


def test_decode_is_diffusionkits_decoder(networks):
    latents = mx.random.normal((1, 16, 16, 16), key=mx.random.key(5))
    expected = networks.decoder(latents)
    rows = training.with_row_linears(networks.decoder)
    assert mx.allclose(training.decode(rows, latents), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("fused", "plain", "shapes"),
    [
        (forward.gelu, lambda x: x * (1 + mx.erf(x * math.sqrt(0.5))) / 2, [(4, 5)]),
        (forward.modulate, lambda x, a, s: x * (1 + s) + a, [(2, 3, 4), (2, 1, 4), (2, 1, 4)]),
        (forward.gated, lambda r, g, u: r + g * u, [(2, 3, 4), (2, 1, 4), (2, 3, 4)]),
    ],
)
def test_fused_gradients_are_the_automatic_ones(fused, plain, shapes):
    inputs = [mx.random.normal(shape, key=mx.random.key(i)) for i, shape in enumerate(shapes)]
    which = list(range(len(inputs)))

    def slopes(function):
        return mx.grad(lambda *values: mx.sin(function(*values)).sum(), argnums=which)(*inputs)

    for actual, expected in zip(slopes(fused), slopes(plain), strict=True):
        assert mx.allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_patches_are_two_by_two_in_rows():
    latents = mx.arange(2 * 4 * 4 * 3).reshape(2, 4, 4, 3)
    patches = forward.patchify(latents)
    assert patches.shape == (2, 4, 12)
    assert mx.array_equal(patches[1, 2].reshape(2, 2, 3), latents[1, 2:4, 0:2])


def test_the_update_is_adamw_with_a_clipped_gradient():
    weights, gradient = np.array([1.0, -2.0, 3.0]), np.array([3.0, 0.0, -4.0])
    state = optimizer.State.start(mx.array(weights.astype(np.float32)))
    state = optimizer.update(
        state, mx.array(gradient.astype(np.float32)), rate=0.1, weight_decay=0.5, ema=0.9
    )
    clipped = gradient / 5  # of length 1 now
    first = (1 - optimizer.BETA1) * clipped
    second = (1 - optimizer.BETA2) * clipped**2
    step = (first / (1 - optimizer.BETA1)) / (np.sqrt(second / (1 - optimizer.BETA2)) + 1e-8)
    expected = weights - 0.1 * (step + 0.5 * weights)
    assert np.allclose(np.array(state.weights), expected, rtol=1e-5)
    decay = 1 / (optimizer.EMA_WARMUP + 1)  # the average starts short
    assert np.allclose(np.array(state.average), decay * weights + (1 - decay) * expected, rtol=1e-5)


def test_the_schedule_rises_and_falls_to_zero():
    schedule = optimizer.Schedule(peak=2.0, warmup=10, steps=110)
    rates = [schedule(step) for step in range(111)]
    assert rates[9] == max(rates) == 2.0
    assert rates[60] == pytest.approx(1.0)
    assert rates[110] == pytest.approx(0.0)


def flow_run(settings, checkpoint, lines=None):
    nets = network.build(CONFIG, vocabulary_size=50, seed=settings.seed)
    latents = mx.random.normal((10, 64, 64), key=mx.random.key(0))
    tokens = mx.array(np.random.default_rng(0).integers(0, 49, (10, 20)))
    return training.fit(
        training.flow_loss(CONFIG),
        training.joined(mmdit=nets.mmdit, text=nets.text),
        training.draw_latents(latents, tokens, tokens[0], settings),
        settings,
        checkpoint,
        lambda step, loss: None if lines is None else lines.append((step, loss)),
    )


def vae_run(settings, checkpoint):
    nets = network.build(CONFIG, vocabulary_size=50, seed=settings.seed)
    pictures = mx.array(data.draw_shard(3, 0, 4, ())[0])
    return training.fit(
        training.vae_loss(nets),
        training.joined(encoder=nets.encoder, decoder=nets.decoder),
        training.draw_pictures(pictures, settings),
        settings,
        checkpoint,
        lambda step, loss: None,
    )


@pytest.mark.parametrize("run", [flow_run, vae_run])
def test_a_stopped_and_resumed_run_ends_with_the_same_bits(tmp_path, run):
    undisturbed = run(SETTINGS, tmp_path / "a.safetensors")
    checkpoint = tmp_path / "b.safetensors"
    stopped = run(dataclasses.replace(SETTINGS, stop_at=4), checkpoint)
    assert stopped.step == 4
    resumed = run(SETTINGS, checkpoint)
    assert resumed.step == undisturbed.step == SETTINGS.steps
    for name, expected in undisturbed.arrays.items():
        assert mx.array_equal(resumed.arrays[name], expected), name


def test_a_checkpoint_of_other_settings_is_not_continued(tmp_path):
    checkpoint = tmp_path / "run.safetensors"
    flow_run(SETTINGS, checkpoint)
    other = dataclasses.replace(SETTINGS, learning_rate=2e-3)
    lines: list[tuple[int, float]] = []
    restarted = flow_run(other, checkpoint, lines)
    assert lines[-1][0] == SETTINGS.steps
    fresh = flow_run(other, tmp_path / "fresh.safetensors")
    assert mx.array_equal(restarted.weights, fresh.weights)


def test_training_lowers_the_loss(tmp_path):
    settings = dataclasses.replace(SETTINGS, steps=25, learning_rate=5e-3, checkpoint_every=1000)
    state = vae_run(settings, tmp_path / "long.safetensors")
    first = vae_run(dataclasses.replace(settings, stop_at=1), tmp_path / "short.safetensors")
    assert state.losses[-1][1] < 0.9 * first.losses[-1][1]


def test_held_out_captions_are_not_drawn():
    _, captions = data.draw_shard(seed=5, shard=0, count=40, held_out=())
    _, others = data.draw_shard(seed=5, shard=0, count=40, held_out=frozenset(captions))
    assert not set(captions).intersection(others)


def test_shards_differ_and_are_reproducible():
    first, again, second = (data.draw_shard(5, shard, 4, ()) for shard in (0, 0, 1))
    assert first[1] == again[1]
    assert np.array_equal(first[0], again[0])
    assert first[1] != second[1]


def test_the_scripts_make_a_model_that_the_library_loads(tmp_path):
    held_out = tmp_path / "held-out.csv"
    held_out.write_text(to_csv(["a small red star on a navy background"]))
    shards = [str(tmp_path / f"{number}.npz") for number in range(2)]
    for number, shard in enumerate(shards):
        train_demo_pictures.main(
            output=shard, held_out=str(held_out), seed=7, shard=number, count=8
        )
    vae, latents, mmdit = (str(tmp_path / f"{n}.safetensors") for n in ("vae", "latents", "mmdit"))
    tokenizer, checkpoints = str(tmp_path / "tokenizer"), tmp_path / "checkpoints"
    train_demo_vae.main(
        output=vae,
        shards=shards[:1],
        size="tiny",
        options=OPTIONS,
        checkpoint=str(checkpoints / "vae.safetensors"),
    )
    train_demo_latents.main(
        output=latents, tokenizer_folder=tokenizer, shards=shards, weights=vae, size="tiny"
    )
    train_demo_mmdit.main(
        output=mmdit,
        latents=latents,
        tokenizer=tokenizer,
        size="tiny",
        stages=[OPTIONS, OPTIONS],
        checkpoints=str(checkpoints),
    )
    train_demo_export.main(
        folder=str(tmp_path / "model"), vae=vae, mmdit=mmdit, size="tiny", pictures=16
    )
    assert not list(checkpoints.iterdir())

    spec = read_spec("local", str(tmp_path / "model"))
    texts = ["a small red star on a navy background", ""]
    tokens, pooled = encode_texts(spec, texts, mx.float32, use_t5=False)
    sigmas = sigma_schedule(2, spec.shift)
    noise = initial_latents(0, latent_shape(spec.image_size), sigmas[0])
    final = sample_euler(load_network(spec, mx.float32), noise, sigmas, tokens, pooled, 4.0)
    decoder = load_vae_decoder(spec, mx.float32)
    drawn = decode(decoder, final, spec.latent_scale, spec.latent_shift)
    assert drawn.shape == (1, 128, 128, 3)
    record = json.loads((tmp_path / "model" / "config.json").read_text())["training"]
    assert record["pictures"] == 16
    assert record["vae"]["settings"]["steps"] == OPTIONS["steps"]
    assert 0 < record["mmdit"]["loss"] < 5
