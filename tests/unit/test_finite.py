"""Values that are not finite are told where they arise: what, where, and what to do.

The models here have finite weights, one of which makes a block overflow float16.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ditquant.activations.clip_search import measure_clip_errors
from ditquant.activations.configs import clip_configs, make_config, tier_configs
from ditquant.activations.observe import measure_image
from ditquant.activations.velocity_sensitivity import error_gains, velocity_errors
from ditquant.backend import mx, nn
from ditquant.errors import UserError
from ditquant.evaluation.block_errors import output_streams
from ditquant.evaluation.trajectories import read_setting, teacher_forced
from ditquant.finite import ADVICE, check_finite
from ditquant.models import text
from ditquant.models.load import load_text_encoder, load_vae_decoder
from ditquant.models.spec import read_spec
from ditquant.network.sampling import decode, sample_euler, sigma_schedule
from ditquant.weights.block_io import boundary_streams, read_block
from ditquant.weights.layer_inputs import second_moments
from ditquant.weights.prefix import streams_after
from ditquant.weights.velocity_rows import velocity_rows
from support.block_data import random_trajectory
from support.models import build_network, write_conditioning, write_folder
from support.problems import BLOCKS, full_recipe, make_problem, write_images
from support.schemes import scheme

STEPS = 3
HALF = mx.float16


def make_loud(model: nn.Module, name: str = "mm01") -> None:
    """The block's image stream gives 60,000 to GELU, which doubles it on its way: float16 ends."""
    block = model.block(name)
    fc1 = block.streams["img"].module.mlp.fc1
    fc1.bias = mx.full(fc1.bias.shape, 60_000.0, HALF)


def half_model() -> nn.Module:
    model = build_network(seed=4, dtype=HALF, float16_dtype=HALF)
    model.module.set_dtype(HALF)
    return model


@pytest.fixture
def loud() -> nn.Module:
    model = half_model()
    make_loud(model)
    return model


@pytest.fixture(scope="module")
def trajectory():
    return random_trajectory(1, STEPS, HALF)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("model"))


def told(what: str, where: str) -> pytest.RaisesExc:
    """The one kind of message."""
    expected = f"NaN or infinity in {what} {where}. {ADVICE}"
    return pytest.RaisesExc(UserError, check=lambda error: str(error) == expected)


def told_of(*parts: str) -> pytest.RaisesExc:
    """The same, where only some of it is known."""

    def is_told(error: BaseException) -> bool:
        message = str(error)
        return message.startswith("NaN or infinity in ") and all(part in message for part in parts)

    return pytest.RaisesExc(UserError, check=is_told)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32])
def test_the_first_that_is_wrong_is_named(bad, dtype):
    fine = mx.array([1.0, -2.0], dtype)
    check_finite({"one": fine, "two": np.array([0.0]), "three": mx.array([1, 2])}, "here")
    wrong = mx.array([0.0, bad, 1.0]).astype(dtype)
    with told("two", "at step 3 of 50"):
        check_finite({"one": fine, "two": wrong, "three": wrong}, "at step 3 of 50")
    with told("three", "here"):
        check_finite({"one": fine, "three": np.array([bad])}, "here")


def conditioning_of(trajectory):
    return trajectory.conditioning.tokens, trajectory.conditioning.pooled


def test_latents_are_told_by_step(trajectory):
    model = half_model()
    sigmas = sigma_schedule(STEPS, 3.0)
    start = trajectory.latents[:1]

    def before_step(index: int, sigma: float) -> None:
        if index == 1:
            make_loud(model)

    with told("the latents", f"behind step 2 of 3 (sigma {sigmas[1].item():.4g})"):
        sample_euler(
            model, start, sigmas, *conditioning_of(trajectory), 4.0, before_step=before_step
        )


def test_a_picture_of_nan_is_not_black(folder):
    spec = read_spec("local", str(folder))
    decoder = load_vae_decoder(spec, HALF)
    decoder.conv_in.bias = mx.full(decoder.conv_in.bias.shape, 60_000.0, HALF)
    with told("the picture", "behind the VAE's decoder"):
        decode(decoder, mx.zeros((1, 8, 8, 16)), spec.latent_scale, spec.latent_shift)


def test_conditioning_is_told_by_encoder_and_prompt(folder, monkeypatch):
    spec = read_spec("local", str(folder))

    def load(*how):
        model, tokenizer = load_text_encoder(*how)
        word = text.tokenize(tokenizer, "moon")[1]
        words, places = model.token_embedding, model.position_embedding
        # Their sum overflows at this word alone.
        places.weight = mx.full(places.weight.shape, 6e4, HALF)
        is_word = mx.arange(len(words.weight))[:, None] == word
        words.weight = mx.where(is_word, mx.array(6e4, HALF), words.weight)
        return model, tokenizer

    monkeypatch.setattr(text, "load_text_encoder", load)
    prompts = ["a red star", "a blue ring", "a moon", ""]
    with told("the conditioning", "by text encoder clip_l of prompt 'a moon' or ''"):
        text.encode_texts(spec, prompts, HALF)


def test_streams_are_told_by_block_and_step(loud, trajectory):
    with told("the img stream behind block mm01", "at step 2 of 3"):
        boundary_streams(loud, trajectory, 1)


def test_a_quantized_prefix_is_told_by_block(tmp_path):
    files = write_images(tmp_path, half_model(), images=1, dtype=HALF)
    model, data = half_model(), read_block(files, BLOCKS, "mm00")
    make_loud(model, "mm00")
    with told("the img stream", "behind quantized block mm00"):
        streams_after(model, "mm00", "mm01", data, {}, {})


def test_inputs_of_linears_are_told_by_name(tmp_path):
    problem = make_problem(tmp_path, full_recipe("gptq"), dtype=HALF)
    fc1 = problem.block.streams["txt"].module.mlp.fc1
    fc1.weight = 1e5 * fc1.weight
    with told("the inputs of mm00.txt.mlp.fc2", "on cached streams"):
        second_moments(problem, problem.train)


def test_statistics_are_told_by_linear_and_step(trajectory):
    model = half_model()
    make_loud(model, "mm00")
    with told("the inputs of mm00.img.mlp.fc2", "at step 3"):
        measure_image(model, trajectory, [2], "tiny", "0000")


def test_statistics_beyond_their_range_are_a_message(trajectory):
    model = build_network(seed=4)
    fc1 = model.blocks[0].streams["img"].module.mlp.fc1
    fc1.bias = mx.full(fc1.bias.shape, 1e12)
    with pytest.raises(UserError, match=r"values of about 1e\+12; statistics end at 2\^30"):
        measure_image(model, random_trajectory(1, STEPS), [0], "tiny", "0000")


@pytest.fixture(scope="module")
def statistics():
    """Of the model before it overflows."""
    return measure_image(half_model(), random_trajectory(1, STEPS, HALF), [0, 2], "tiny", "0000")


def test_errors_of_shorter_ranges_are_told(loud, trajectory, statistics):
    wanted = scheme(rule="measured", clips={"images": 1, "stride": 1})
    with told_of("the errors of mm01.img.mlp.fc2", "with shorter ranges at step 1. "):
        measure_clip_errors(loud, trajectory, "0001", [0], clip_configs(statistics, wanted))


def test_velocities_of_the_search_for_tiers_are_told(loud, trajectory, statistics):
    configs = tier_configs(statistics, scheme())
    with told("the full-precision velocity", "at step 3"):
        velocity_errors(loud, trajectory, [2], configs)
    with told("the gain of an error", "from step 1 to the end"):
        error_gains(loud, trajectory, [0], configs[4])


@pytest.mark.parametrize("bad", [(math.nan, 1.0), (-1.0, math.inf)])
def test_ranges_are_told_by_linear(statistics, bad):
    learned = dict.fromkeys(statistics.inputs, bad)
    with told_of("of the inputs of mm00.img.attn.q_proj"):
        make_config(statistics, scheme(rule="learned"), learned=learned)


def test_targets_of_the_tuning_are_told(loud, trajectory):
    with told("the full-precision velocity", "of image 0000, 0001"):
        velocity_rows(loud, [trajectory, replace(trajectory)], 1)


def test_a_variant_is_told_at_the_references_latents(loud, trajectory, tmp_path):
    sigmas = sigma_schedule(STEPS, 3.0)
    with told("the velocity", "at the reference's latents of step 1"):
        teacher_forced(
            loud, lambda *step: None, trajectory.latents[None, :1], sigmas,
            trajectory.conditioning, 4.0, lambda: None,
        )  # fmt: skip
    shard = str(write_conditioning(tmp_path / "evaluation-000.safetensors"))
    plan = {
        "prompts": [{"text": "a", "negative": "", "row": 0}],
        "seed": 7, "num_steps": STEPS, "cfg_weight": 4.0,
        "image_size": [64, 64], "batch_size": 1,
    }  # fmt: skip
    latents = np.array(trajectory.latents[None, :1])
    setting = read_setting(plan, [shard], [Path(shard).name])
    outputs = output_streams(loud, lambda *step: None, setting, latents, np.array(sigmas), HALF)
    with told("the stream mm01.img", "behind its block at step 1"):
        list(outputs)
