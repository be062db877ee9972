"""End-to-end tuning: what it learns, what it keeps, and that it goes on where it was stopped."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from ditquant.backend import mx, to_numpy
from ditquant.errors import UserError
from ditquant.network.calibration import Conditioning, Trajectory
from ditquant.network.sampling import velocity_at
from ditquant.planning.recipes import Recipe
from ditquant.weights import learning
from ditquant.weights import velocity_rows as velocity_rows_module
from ditquant.weights.divergence import told
from ditquant.weights.grids import Grid, dequantize, round_to_nearest
from ditquant.weights.learning import Resume
from ditquant.weights.tuning import Tuner, tune, tune_recipe
from ditquant.weights.velocity_rows import enter, row_errors, velocity_rows
from support.block_data import random_trajectory
from support.models import build_network
from support.problems import tuned_recipe


def tuning(iterations: int, batch_size: int, rate: float, rows_at_once=None, **options) -> Recipe:
    return tuned_recipe(
        tune_iterations=iterations, tune_batch_size=batch_size, tune_learning_rate=rate,
        tune_rows_at_once=rows_at_once, **options,
    )  # fmt: skip


SHORT = tuning(24, 8, 0.01)


def network(**options):
    return build_network(seed=4, **options)


def packed_of(model, bits: int = 3, kind: str = "group"):
    grid = Grid(kind, bits, 32)
    return {linear.name: round_to_nearest(linear.module.weight, grid) for linear in model.linears}


def trajectories(count: int = 5, dtype: mx.Dtype = mx.float32) -> list[Trajectory]:
    return [random_trajectory(image, dtype=dtype) for image in range(count)]


def tuned(recipe: Recipe = SHORT, model=None, **how):
    model = model or network()
    packed = packed_of(model, kind=recipe.grid)
    rows = velocity_rows(model, trajectories(), 1)
    return packed, tune(model, packed, rows, recipe, 7, **how)


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(
        mx.array_equal(getattr(one[name], part), getattr(other[name], part)).item()
        for name in one
        for part in ("weight", "scales", "biases")
    )


@pytest.fixture(scope="module")
def straight():
    return tuned()


def test_targets_are_the_velocities_of_the_sampler():
    model = network()
    rows = velocity_rows(model, trajectories(2), 2)
    assert rows.rows_per_image == (2, 2)
    trajectory = trajectories(2)[1]
    conditioning = trajectory.conditioning
    expected = velocity_at(
        model, trajectory.latents[2:3], trajectory.sigmas[2], trajectory.timesteps[2],
        conditioning.tokens, conditioning.pooled, trajectory.cfg_weight,
    )  # fmt: skip
    # The second image's second step.
    assert mx.allclose(rows.targets[3:4], expected, rtol=1e-3, atol=1e-3)
    assert rows.energies[3].item() == pytest.approx(mx.mean(expected**2).item(), rel=1e-3)


def test_unguided_trajectories_have_one_side():
    model = network()
    plain = [
        replace(one, cfg_weight=0.0, conditioning=Conditioning(
            one.conditioning.tokens[:1], one.conditioning.pooled[:1]
        ))
        for one in trajectories(2)
    ]  # fmt: skip
    rows = velocity_rows(model, plain, 2)
    conditioning = plain[1].conditioning
    expected = velocity_at(
        model, plain[1].latents[2:3], plain[1].sigmas[2], plain[1].timesteps[2],
        conditioning.tokens, conditioning.pooled, 0.0,
    )  # fmt: skip
    assert mx.allclose(rows.targets[3:4], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("which", [0, 1])
def test_the_gradient_of_the_velocity_error(which):
    model = network()
    packed = packed_of(model)
    rows = velocity_rows(model, trajectories(2), 1)
    own = Tuner(model, packed, rows, replace(SHORT, holdout=0.5), 0)
    state = own.start()
    part = np.array([0, 3, 4])
    with own.tuned_blocks():
        how = (state.scaling, *enter(model, rows, part), mx.array(part))
        error, slopes = own.slopes(state.values, *how)
        assert error.item() > 0
        linear = 2 * 5 + which
        direction = mx.sign(slopes[linear])
        ends = []
        for sign in (1, -1):
            moved = list(state.values)
            moved[linear] = moved[linear] + sign * 0.02 * direction
            ends.append(own.slopes(moved, *how)[0].item())
    measured = (ends[0] - ends[1]) / 0.04
    assert measured == pytest.approx(mx.sum(slopes[linear] * direction).item(), rel=0.03)


def test_tuning_lowers_the_error_and_moves_no_code(straight):
    packed, result = straight
    document = result.document
    assert document["kept"] == "tuned"
    assert document["error"]["tuned"] < 0.95 * document["error"]["start"]
    assert result.packed.keys() == packed.keys()
    moved = {
        name for name, one in packed.items()
        if not mx.array_equal(one.scales, result.packed[name].scales)
    }  # fmt: skip
    # What the last block's text queries find goes nowhere.
    assert packed.keys() - moved == {"mm01.txt.attn.q_proj"}
    for name, one in packed.items():
        assert mx.array_equal(one.weight, result.packed[name].weight)
    assert document["history"][-1]["iteration"] == SHORT.tuning.iterations
    assert document["history"][-1]["held_out"] == document["error"]["tuned"]
    assert document["rows"] == {"train": 16, "held_out": 4}
    assert 0 < document["offsets"]["scale"] < 0.5


def test_the_held_out_error_is_that_of_the_stored_weights(straight):
    _, result = straight
    model = network()
    rows = velocity_rows(model, trajectories(), 1)
    for linear in model.linears:
        linear.module.weight = dequantize(result.packed[linear.name])
    errors = []
    for row in range(16, 20):
        part = np.array([row])
        output = model.forward(*enter(model, rows, part))
        errors.append(row_errors(rows, output, mx.array(part)).item())
    assert np.mean(errors) == pytest.approx(result.document["error"]["tuned"], rel=1e-3)


def test_what_does_not_help_is_not_kept():
    packed, result = tuned(tuning(2, 4, 0.1))
    assert result.document["kept"] == "start"
    assert result.document["diverged"] is None
    assert result.document["error"]["tuned"] > result.document["error"]["start"]
    assert same(result.packed, packed)


# Finite and far off; beyond float32.
@pytest.mark.parametrize("rate", [5.0, 1e38])
def test_a_tuning_that_diverged_is_told(rate):
    packed, result = tuned(tuning(3, 4, rate))
    document = result.document
    assert document["kept"] == "start"
    assert "smaller learning rate" in told(document)
    assert same(result.packed, packed)
    assert document["history"] or rate > 5.0
    json.dumps(document, allow_nan=False)


def test_a_network_that_overflows_before_its_tuning_is_told(monkeypatch):
    model = network()
    packed = packed_of(model)
    rows = velocity_rows(model, trajectories(2), 1)
    monkeypatch.setattr(
        velocity_rows_module, "guided", lambda *arguments: rows.targets[:4] * math.inf
    )
    with pytest.raises(UserError, match=r"output of the network overflows\. Set model"):
        tune(model, packed, rows, replace(SHORT, holdout=0.5), 7)


def test_a_second_run_gives_the_same_bits(straight):
    _, result = tuned()
    assert same(result.packed, straight[1].packed)
    assert result.document == straight[1].document


def test_parts_of_a_batch_give_the_same_gradient(straight):
    _, result = tuned(tuning(24, 8, 0.01, 2))
    wanted = straight[1].document["error"]["tuned"]
    assert result.document["error"]["tuned"] == pytest.approx(wanted, rel=0.02)


class Stop(Exception):
    pass


def test_a_stopped_run_goes_on_and_ends_with_the_same_bits(straight, tmp_path, monkeypatch):
    monkeypatch.setattr(learning, "SAVE_SECONDS", 0.0)
    resume = Resume(tmp_path / ".tuned.resume.safetensors", "k")
    iterate = Tuner.iterate

    def stopping(self, state):
        if state.iteration == 13:
            raise Stop
        iterate(self, state)

    with monkeypatch.context() as patched:
        patched.setattr(Tuner, "iterate", stopping)
        with pytest.raises(Stop):
            tuned(resume=resume)
    kept = resume.load()
    assert kept is not None
    assert kept.iteration == 13
    # What collects errors between two points of the history goes on too.
    assert kept.pending or kept.history[-1]["iteration"] == 13
    _, result = tuned(resume=resume)
    assert same(result.packed, straight[1].packed)
    assert result.document == straight[1].document


def test_linears_that_are_left_alone_stay(straight):
    model = network()
    packed = packed_of(model)
    left = "mm01.img.mlp.fc2"
    weight = next(one for one in model.linears if one.name == left).module.weight
    del packed[left]
    rows = velocity_rows(model, trajectories(), 1)
    result = tune(model, packed, rows, SHORT, 7)
    assert left not in result.packed
    assert result.document["kept"] == "tuned"
    after = next(one for one in model.linears if one.name == left).module.weight
    assert mx.array_equal(weight, after)


def test_a_channel_grid_is_tuned_row_by_row():
    _, result = tuned(replace(SHORT, grid="channel"))
    assert result.document["kept"] == "tuned"
    for one in result.packed.values():
        assert mx.array_equal(one.scales, mx.broadcast_to(one.scales[:, :1], one.scales.shape))


def test_half_precision_learns_too():
    model = network(dtype=mx.float16, float16_dtype=mx.float16)
    model.module.set_dtype(mx.float16)
    packed = packed_of(model)
    rows = velocity_rows(model, trajectories(dtype=mx.float16), 1)
    result = tune(model, packed, rows, SHORT, 7)
    assert result.document["kept"] == "tuned"
    assert all(np.isfinite(to_numpy(one.scales)).all() for one in result.packed.values())


def test_unified_blocks_are_tuned_too():
    model = network(depth_unified=1)
    packed, result = tuned(model=model)
    assert any(name.startswith("uni00") for name in packed)
    assert result.document["error"]["tuned"] < result.document["error"]["start"]


def test_a_recipe_is_tuned_with_everything_as_it_will_run():
    recipe = tuning(12, 8, 0.01, 4, tune_stride=2, quantize="all", other_bits=4)
    model = network()
    packed = packed_of(model)
    name = "multimodal_transformer_blocks.0.image_transformer_block.attn.q_proj.bias"
    parameters = {name: mx.full((64,), 0.1)}
    result = tune_recipe(model, packed, parameters, trajectories(), recipe, 0)
    assert result.document["recipe"] == recipe.params()
    assert result.document["rows"] == {"train": 8, "held_out": 2}
    bias = model.module.multimodal_transformer_blocks[0].image_transformer_block.attn.q_proj.bias
    assert mx.array_equal(bias, parameters[name])
    # Others are quantized while it is tuned: at 4 bits that costs something.
    blocks = tuning(12, 8, 0.01, 4, tune_stride=2)
    alone = tune_recipe(network(), packed, parameters, trajectories(), blocks, 0)
    assert alone.document["error"]["start"] != result.document["error"]["start"]
