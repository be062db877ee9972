"""Runs of captions: batches do not matter, and velocities are taken where they should be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ditquant.artifacts import load_metadata
from ditquant.backend import mx
from ditquant.evaluation.trajectories import (
    NOISE_OFFSET,
    count_parameters,
    kept_steps,
    load_run,
    read_setting,
    run_captions,
    save_run,
)
from ditquant.metrics import relative_error
from ditquant.models.load import load_vae_decoder
from ditquant.models.spec import read_spec
from ditquant.network.calibration import load_conditioning
from ditquant.network.diffusionkit import load_network
from ditquant.network.sampling import initial_latents, sample_euler, sigma_schedule
from support.models import parameters, write_conditioning, write_folder

STEPS = 6


def leave_alone(index: int, sigma: float) -> None:
    pass


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    return read_spec("local", str(write_folder(tmp_path_factory.mktemp("model"))))


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    return str(
        write_conditioning(tmp_path_factory.mktemp("conditioning") / "evaluation-000.safetensors")
    )


def setting_of(shard: str, batch_size: int):
    plan = {
        "prompts": [{"text": f"caption {row}", "negative": "", "row": row} for row in range(3)],
        "seed": 7,
        "num_steps": STEPS,
        "cfg_weight": 4.0,
        "image_size": [64, 64],
        "batch_size": batch_size,
    }
    return read_setting(plan, [shard], [Path(shard).name] * 3)


def run_of(spec, shard, batch_size=2, before_step=leave_alone, forced_at=None):
    network, decoder = load_network(spec, mx.float32), load_vae_decoder(spec, mx.float32)
    setting = setting_of(shard, batch_size)
    return run_captions(network, before_step, decoder, spec, setting, mx.float32, forced_at)


@pytest.fixture(scope="module")
def reference(spec, shard):
    return run_of(spec, shard)


def test_a_caption_ends_where_the_sampler_alone_takes_it(spec, shard, reference):
    run, took = reference
    sigmas = sigma_schedule(STEPS, spec.shift)
    conditioning = load_conditioning([shard], [2], True, mx.float32)
    start = initial_latents(7 + NOISE_OFFSET + 2, (1, 8, 8, 16), sigmas[0])
    alone = sample_euler(
        load_network(spec, mx.float32), start, sigmas, conditioning.tokens, conditioning.pooled, 4.0
    )
    # Another batch size changes the order of float32 sums, about 1e-7 a step, squared here.
    assert relative_error(np.array(alone)[0], run.final[2]) < 1e-10
    assert np.array_equal(run.latents[2, 0], np.array(start)[0])
    assert run.images.shape == (3, 64, 64, 3)
    assert run.images.dtype == np.uint8
    assert took["peak_bytes"] > 0
    assert took["step_seconds"] > 0


def test_batch_size_changes_no_more_than_rounding(spec, shard, reference):
    one_by_one, _ = run_of(spec, shard, batch_size=1)
    assert relative_error(one_by_one.final, reference[0].final) < 1e-10


def test_velocities_at_own_latents_are_the_own_velocities(spec, shard, reference):
    run, _ = reference
    forced, _ = run_of(spec, shard, forced_at=run.latents)
    assert np.array_equal(forced.velocities, run.velocities)
    elsewhere, _ = run_of(spec, shard, forced_at=run.latents + 1)
    assert relative_error(elsewhere.velocities, run.velocities) > 1e-3


def test_before_step_sees_every_forward_pass(spec, shard, reference):
    seen = []
    run_of(spec, shard, before_step=lambda i, s: seen.append((i, round(s, 4))),
           forced_at=reference[0].latents)  # fmt: skip
    sigmas = [round(s, 4) for s in np.array(sigma_schedule(STEPS, spec.shift)).tolist()]
    free = list(enumerate(sigmas[:-1]))
    forced = [(step, sigmas[step]) for step in kept_steps(STEPS)]
    assert seen == (free + forced) * 2  # two batches


def test_measured_steps_start_with_the_first():
    assert kept_steps(28) == [0, 4, 8, 12, 16, 20, 24]
    assert kept_steps(2) == [0]


def test_a_run_comes_back_from_its_file(tmp_path, reference):
    run, _ = reference
    save_run(tmp_path / "run.safetensors", run, {"captions": ["«é»\n" + "x" * 2000]})
    loaded = load_run(tmp_path / "run.safetensors")
    for name in ("final", "latents", "velocities", "images", "sigmas"):
        assert np.array_equal(getattr(loaded, name), getattr(run, name))
    captions = json.loads(
        load_metadata(tmp_path / "run.safetensors", "ditquant.reference")["captions"]
    )
    assert captions == ["«é»\n" + "x" * 2000]


def test_count_parameters(spec):
    network = load_network(spec, mx.float32)
    assert count_parameters(network) == sum(p.size for p in parameters(network).values())
