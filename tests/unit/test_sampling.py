"""The sampler is DiffusionKit's, bit for bit, without emptying the model."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest

from ditquant.backend import import_diffusionkit, mx
from ditquant.network import diffusionkit
from ditquant.network.sampling import initial_latents, predict, sample_euler, sigma_schedule
from support.models import build_network, parameters

STEPS = 5


@pytest.fixture(scope="module")
def model():
    return build_network(seed=3)


@pytest.fixture(scope="module")
def conditioning():
    mx.random.seed(1)
    return mx.random.normal((2, 7, 32)), mx.random.normal((2, 32))


def reference(model, conditioning, pooled, cfg_weight, seed, dtype):
    """DiffusionKit's own `denoise_latents` around its own `sample_euler`."""
    kit = import_diffusionkit()
    pipeline = object.__new__(kit.DiffusionPipeline)
    model.module.clear_modulation_params_cache()
    pipeline.mmdit = model.module
    pipeline.activation_dtype = dtype
    pipeline.sampler = kit.ModelSamplingDiscreteFlow(shift=3.0)
    pipeline.latent_format = kit.SD3LatentFormat()
    # Offloading empties the adaLN weights; they are put back as the pipeline's reload would.
    kept = parameters(model)
    pipeline.load_mmdit = lambda only_modulation_dict: list(kept.items())
    latents, _ = pipeline.denoise_latents(
        conditioning, pooled, STEPS, cfg_weight, latent_size=(8, 8), seed=seed
    )
    model.module.clear_modulation_params_cache()
    return latents


@pytest.mark.parametrize("cfg_weight", [4.0, 0.0])
def test_same_bits_as_diffusionkit(model, conditioning, cfg_weight):
    tokens, pooled = conditioning
    if cfg_weight == 0.0:
        tokens, pooled = tokens[:1], pooled[:1]
    expected = reference(model, tokens, pooled, cfg_weight, 11, mx.float32)
    sigmas = sigma_schedule(STEPS, 3.0)
    start = initial_latents(11, (1, 8, 8, 16), sigmas[0])
    final = sample_euler(model, start, sigmas, tokens, pooled, cfg_weight)
    assert mx.array_equal(final / 1.5305 + 0.0609, expected)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [2, 28, 50])
def test_schedule_is_diffusionkits(shift, steps):
    kit = import_diffusionkit()
    sampler = kit.ModelSamplingDiscreteFlow(shift=shift)
    expected = kit.DiffusionPipeline.get_sigmas(SimpleNamespace(), sampler, steps)
    sigmas = sigma_schedule(steps, shift)
    assert mx.array_equal(sigmas, expected)
    assert sigmas[0].item() == 1.0
    assert sigmas[-1].item() == 0.0


def test_sampling_leaves_the_weights_alone(model, conditioning):
    tokens, pooled = conditioning
    sigmas = sigma_schedule(STEPS, 3.0)
    start = initial_latents(5, (1, 8, 8, 16), sigmas[0])
    first = sample_euler(model, start, sigmas, tokens, pooled, 4.0)
    adaln = model.other_linears("blocks+adaln")
    assert all(linear.module.weight.size > 0 for linear in adaln)
    assert mx.array_equal(first, sample_euler(model, start, sigmas, tokens, pooled, 4.0))


def test_the_modulation_of_all_layers_is_one_evaluation(model, monkeypatch):
    """Each evaluation makes the host wait for the device."""
    evaluated = []
    counting = SimpleNamespace(eval=lambda arrays: evaluated.append(len(arrays)))
    monkeypatch.setattr(diffusionkit, "mx", counting)
    model.modulate(mx.zeros((2, 1, 1, 64)))
    assert evaluated == [len(model.other_linears("blocks+adaln"))]


def test_blocks_get_a_time_step_that_nothing_has_to_compute(model, conditioning, monkeypatch):
    """DiffusionKit reads its value in every stream, and takes the first of several."""
    seen = []
    block = type(model.module.multimodal_transformer_blocks[0])
    call = block.__call__
    monkeypatch.setattr(block, "__call__", lambda *a, **k: (seen.append(a[3]), call(*a, **k))[1])
    tokens, pooled = conditioning
    latents = mx.zeros((1, 8, 8, 16))
    predict(model, latents, mx.array(0.5), mx.array(500.0), tokens, pooled, 4.0)
    assert len(seen) == 2
    assert all(timestep is diffusionkit.ANY_TIMESTEP for timestep in seen)


def test_observer_sees_every_step_and_sigma_comes_first(model, conditioning):
    tokens, pooled = conditioning
    sigmas = sigma_schedule(STEPS, 3.0)
    start = initial_latents(5, (1, 8, 8, 16), sigmas[0])
    seen, announced = [], []
    final = sample_euler(
        model, start, sigmas, tokens, pooled, 4.0, seen.append,
        lambda index, sigma: announced.append((index, sigma)),
    )  # fmt: skip
    assert announced == [(index, sigmas[index].item()) for index in range(STEPS)]
    assert [step.index for step in seen] == list(range(STEPS))
    assert mx.array_equal(seen[0].latents, start)
    last = seen[-1]
    assert mx.array_equal(last.latents + last.velocity * (sigmas[-1] - last.sigma), final)


def test_rows_of_a_batch_are_independent_images(model, conditioning):
    """Two images drawn together equal each drawn alone, up to float32 summation order."""
    tokens, pooled = conditioning
    sigmas = sigma_schedule(STEPS, 3.0)
    starts = [initial_latents(seed, (1, 8, 8, 16), sigmas[0]) for seed in (5, 6)]
    alone = [sample_euler(model, start, sigmas, tokens, pooled, 4.0) for start in starts]
    together = sample_euler(
        model,
        mx.concatenate(starts),
        sigmas,
        mx.repeat(tokens, 2, axis=0),
        mx.repeat(pooled, 2, axis=0),
        4.0,
    )
    # Five guided steps of a network of two blocks: some hundred roundings of 6e-8 each.
    assert mx.allclose(mx.concatenate(alone), together, rtol=1e-4, atol=1e-4)


def test_on_the_demo_model_too():
    """The demo model: DiffusionKit's own sampler against ours, same bits."""
    from ditquant.models.spec import read_spec
    from ditquant.network.diffusionkit import load_network

    network = load_network(read_spec("demo"), mx.float32)
    mx.random.seed(2)
    tokens, pooled = mx.random.normal((2, 20, 128)), mx.random.normal((2, 128))
    importlib.import_module("diffusionkit.mlx")
    sigmas = sigma_schedule(STEPS, 3.0)
    start = initial_latents(7, (1, 8, 8, 16), sigmas[0])
    ours = sample_euler(network, start, sigmas, tokens, pooled, 4.0)
    expected = reference(network, tokens, pooled, 4.0, 7, mx.float32)
    assert mx.array_equal(ours / 1.5305 + 0.0609, expected)
