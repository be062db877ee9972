"""Errors of block outputs: the right streams at the right steps, in decibels worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ditquant.artifacts import save_tensors
from ditquant.backend import mx, to_numpy
from ditquant.evaluation import block_errors
from ditquant.evaluation.block_errors import (
    BLOCK_CAPTIONS,
    BLOCK_TOKENS,
    Outputs,
    block_sqnr,
    num_passes,
    output_streams,
    sampled_tokens,
    stacked,
)
from ditquant.evaluation.trajectories import kept_steps, read_setting
from ditquant.metrics import decibels
from ditquant.network.blocks import boundaries
from ditquant.network.sampling import predict, sigma_schedule
from support.models import build_network

STEPS = 6
CAPTIONS = BLOCK_CAPTIONS + 1


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    mx.random.seed(5)
    shard = str(tmp_path_factory.mktemp("conditioning") / "evaluation-000.safetensors")
    shapes = {"conditioning": (CAPTIONS, 9, 32), "pooled": (CAPTIONS, 32)}
    save_tensors(
        shard,
        {name: mx.random.normal(shape) for name, shape in shapes.items()},
        "ditquant.conditioning",
    )
    plan = {
        "prompts": [
            {"text": f"caption {row}", "negative": "", "row": row} for row in range(CAPTIONS)
        ],
        "seed": 7, "num_steps": STEPS, "cfg_weight": 4.0, "image_size": [64, 64], "batch_size": 2,
    }  # fmt: skip
    return read_setting(plan, [shard], [Path(shard).name] * CAPTIONS)


@pytest.fixture(scope="module")
def latents():
    rng = np.random.default_rng(3)
    return rng.normal(size=(CAPTIONS, len(kept_steps(STEPS)), 8, 8, 16)).astype(np.float32)


SIGMAS = np.array(sigma_schedule(STEPS, 3.0))


def outputs(network, setting, latents, before_step=lambda index, sigma: None):
    return output_streams(network, before_step, setting, latents, SIGMAS, mx.float32)


def test_the_streams_are_those_of_a_forward_pass(setting, latents):
    network = build_network(seed=2)
    streams = stacked(outputs(network, setting, latents))
    steps = kept_steps(STEPS)
    assert {name: array.shape for name, array in streams.items()} == {
        "mm00.img": (BLOCK_CAPTIONS, len(steps), 16, 64),
        "mm00.txt": (BLOCK_CAPTIONS, len(steps), 9, 64),
        "mm01.img": (BLOCK_CAPTIONS, len(steps), 16, 64),
    }
    seen = {}
    sigma = mx.array(SIGMAS[steps[1]])
    tokens, pooled = (mx.load(setting.shards[0])[name][2:4] for name in ("conditioning", "pooled"))
    with boundaries(network, lambda name, arrays: seen.update({name: arrays})):
        predict(network, mx.array(latents[2:4, 1]), sigma, sigma * 1000, tokens, pooled, 0.0)
    for name, place in (("mm00.img", 0), ("mm00.txt", 1), ("mm01.img", 0)):
        # The same batch, so the same bits.
        expected = seen[f"{name[:4]}.out"][place][:, :, 0]
        assert mx.array_equal(streams[name][2:4, 1], expected)


def test_scales_are_looked_up_before_every_forward_pass(setting, latents):
    seen = []
    for _ in outputs(build_network(), setting, latents, lambda *step: seen.append(step)):
        pass
    batches = BLOCK_CAPTIONS // setting.batch_size
    assert seen == [(step, float(SIGMAS[step])) for step in kept_steps(STEPS)] * batches
    assert num_passes(setting) == len(seen)


def test_batches_change_no_more_than_rounding(setting, latents):
    network = build_network(seed=2)
    pairs = stacked(outputs(network, setting, latents))
    threes = stacked(outputs(network, replace(setting, batch_size=3), latents))
    # Sums of 64 to 256 products in another order: 6e-8 each, through two blocks.
    for name, array in pairs.items():
        assert mx.allclose(array, threes[name], rtol=1e-4, atol=1e-4)


def test_an_error_shows_from_its_block_on(setting, latents):
    reference = stacked(outputs(build_network(seed=2), setting, latents))
    changed = build_network(seed=2)
    linear = changed.blocks[1].linears[0].module
    linear.weight = linear.weight * 1.5
    found = block_sqnr(outputs(changed, setting, latents), reference)
    assert found["captions"] == BLOCK_CAPTIONS
    none = [None] * len(kept_steps(STEPS))
    assert found["streams"]["mm00.img"] == found["streams"]["mm00.txt"] == none
    assert all(0 < value < 60 for value in found["streams"]["mm01.img"])


def test_decibels_are_of_energies_summed_over_captions():
    # Two captions, one step, two streams; the second caption has nine times the energy.
    y = np.stack([np.ones((1, 3, 4)), 3 * np.ones((1, 3, 4))]).astype(np.float32)
    reference = {"mm00.img": mx.array(y), "mm00.txt": mx.array(y)}
    rows = [slice(0, 1), slice(1, 2)]
    changed = y[:, 0] + np.float32(0.5)
    drawn = [
        Outputs(row, 0, {"mm00.img": mx.array(changed[row]), "mm00.txt": mx.array(y[row, 0])})
        for row in rows
    ]
    found = block_sqnr(drawn, reference)["streams"]
    assert found["mm00.img"] == [pytest.approx(10 * np.log10((1 + 9) / (2 * 0.25)))]
    assert found["mm00.txt"] == [None]


def test_half_precision_is_summed_in_float64():
    """300^2 overflows float16, and 2^-11 of it is lost beside it."""
    y = mx.full((1, 1, 2, 2), 300.0, dtype=mx.float16)
    found = block_sqnr([Outputs(slice(0, 1), 0, {"mm00.img": y[:, 0] + 0.25})], {"mm00.img": y})[
        "streams"
    ]
    assert found["mm00.img"] == [pytest.approx(20 * np.log10(300 / 0.25))]


def test_decibels():
    assert decibels(100.0, 1.0) == pytest.approx(20)
    assert decibels(1.0, 0.0) is None


def test_sampled_tokens_are_few_and_cover_the_picture():
    assert sampled_tokens(20) == list(range(20))
    tokens = sampled_tokens(1024)
    assert tokens == sampled_tokens(1024)
    assert len(set(tokens)) == BLOCK_TOKENS
    assert tokens == sorted(tokens)
    assert 0 <= tokens[0] < tokens[-1] < 1024
    # 32 x 32 tokens: evenly spaced ones would stand in two columns. A column is missed with a
    # chance of (1 - 1/32)^64 = 0.13.
    columns = {token % 32 for token in tokens}
    assert len(columns) > 20


def test_long_streams_are_sampled(setting, latents, monkeypatch):
    monkeypatch.setattr(block_errors, "BLOCK_TOKENS", 4)
    network = build_network(seed=2)
    first = next(outputs(network, setting, latents)).streams
    assert first["mm00.img"].shape == (2, 4, 64)
    monkeypatch.undo()
    whole = next(outputs(network, setting, latents)).streams
    monkeypatch.setattr(block_errors, "BLOCK_TOKENS", 4)
    assert np.array_equal(
        to_numpy(first["mm00.img"]), to_numpy(whole["mm00.img"])[:, sampled_tokens(16)]
    )
