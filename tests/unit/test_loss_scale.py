"""float16 gradients that overflow cost a step and not the learning."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from ditquant.backend import mx
from ditquant.network.blocks import shared_input
from ditquant.weights import adaround, learning, loss_scale
from ditquant.weights.grids import Grid, fractional_codes, round_to_nearest
from ditquant.weights.learning import Resume
from ditquant.weights.loss_scale import GROWTH_INTERVAL, Diverged, LossScale
from ditquant.weights.lsq import Joint, range_quantizer
from ditquant.weights.reconstruct import block_error, quantized_weights
from ditquant.weights.roundings import rtn_codes
from ditquant.weights.tuning import Tuner, tune
from ditquant.weights.velocity_rows import velocity_rows
from support.block_data import random_trajectory
from support.models import build_network
from support.problems import full_recipe, make_problem, tuned_recipe

RECIPE = full_recipe("adaround", iterations=40, batch_size=4, learning_rate=0.1)
FLAT = [mx.zeros(3, mx.float16)]
STEEP = [mx.array([0.0, math.inf], mx.float16), mx.zeros(3, mx.float16)]


def judged(scale: LossScale, state: mx.array, slopes: list[mx.array], times: int = 1):
    for _ in range(times):
        state, step = scale.judge(state, mx.array(4.0) * state[0], slopes)
    return state, step


def test_a_step_that_overflows_is_not_taken_and_halves_the_scale():
    scale = LossScale(mx.float16, 2**14, 200)
    state, step = judged(scale, scale.start(), FLAT, times=2)
    first = scale.read(state)
    assert (first.scale, first.taken, first.error) == (2.0**10, 2, 4.0)
    assert step.is_taken.item() == 1
    assert step.unscale.item() == 2.0**-10
    for steep in (math.inf, -math.inf, math.nan):
        after, step = judged(scale, state, [mx.array([1.0, steep]), *FLAT])
        # An error that overflows is not told as that of the last step.
        assert vars(scale.read(after)) == {"scale": 2.0**9, "taken": 2, "error": 4.0}
        assert step.is_taken.item() == 0
    moved = loss_scale.where_taken(step, (mx.array(math.nan),) * 3, (mx.array(1.0),) * 3)
    assert [one.item() for one in moved] == [1.0] * 3


def test_corrections_follow_the_steps_that_were_taken():
    scale = LossScale(mx.float16, 2**14, 200)
    state, _ = judged(scale, scale.start(), STEEP, times=3)
    for taken in (1, 2):
        state, step = judged(scale, state, FLAT)
        expected = [1 / (1 - keep**taken) for keep in loss_scale.ADAM_DECAY]
        # Once rounded to float32.
        assert [one.item() for one in step.corrections] == pytest.approx(expected, rel=2**-23)


def test_good_steps_in_a_row_double_the_scale():
    scale = LossScale(mx.float16, 2**14, 4 * GROWTH_INTERVAL)
    state, _ = judged(scale, scale.start(), FLAT, times=GROWTH_INTERVAL - 1)
    assert scale.read(state).scale == 2.0**10
    assert scale.read(judged(scale, state, FLAT)[0]).scale == 2.0**11
    # One that was not taken starts the count anew.
    state, _ = judged(scale, state, STEEP)
    state, _ = judged(scale, state, FLAT, times=GROWTH_INTERVAL - 1)
    assert scale.read(state).scale == 2.0**9
    assert scale.read(judged(scale, state, FLAT)[0]).scale == 2.0**10


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_float32_exponents_need_no_scale(dtype):
    scale = LossScale(dtype, 2**20, 10)
    state, step = judged(scale, scale.start(), FLAT, times=3)
    assert vars(scale.read(state)) == {"scale": 1.0, "taken": 3, "error": 4.0}
    assert step.is_taken is None
    assert step.unscale.item() == 1.0
    assert scale.finished(state, FLAT) is None


def test_a_scale_that_is_used_up_ends_the_learning():
    scale = LossScale(mx.float16, 2**8, 200)
    state, _ = judged(scale, scale.start(), FLAT, times=5)
    state, _ = judged(scale, state, STEEP, times=4)
    assert scale.read(state).scale == 1.0
    state, _ = judged(scale, state, STEEP)
    # What the host sees does not depend on when it looks.
    later, step = judged(scale, state, FLAT, times=7)
    assert step.is_taken.item() == 0
    for one in (state, later):
        with pytest.raises(Diverged, match="After 5 of 200 steps") as told:
            scale.read(one)
        assert "smaller learning rate" in str(told.value)


def test_a_learning_without_a_step_is_no_learning():
    scale = LossScale(mx.float16, 2**20, 3)
    state, _ = judged(scale, scale.start(), STEEP, times=3)
    with pytest.raises(Diverged, match="each of its 3 steps"):
        scale.finished(state, FLAT)


# ------------------------------------------------------------------------------- learning


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    """The same block in float16 and in float32."""
    return {
        dtype: make_problem(tmp_path_factory.mktemp("io"), full_recipe("adaround"), dtype=dtype)
        for dtype in (mx.float16, mx.float32)
    }


@pytest.fixture
def too_steep(monkeypatch):
    """A start at which gradients of the small block overflow, as those of large ones do."""
    monkeypatch.setattr(loss_scale, "START_SHARE", 2.0**16)


@pytest.fixture
def too_steep_for_tuning(monkeypatch):
    monkeypatch.setattr(loss_scale, "START_SHARE", 2.0**19)


def joint_of(problem) -> Joint:
    input_of = {linear.name: shared_input(linear) for linear in problem.linears}
    quantizers = {name: range_quantizer(-4.0, 4.0, 8) for name in input_of.values()}
    return Joint(quantizers, input_of, learning_rate=1e-3, drop=0.5)


def learn(problem, joint=False, recipe=RECIPE, **more):
    starts = [fractional_codes(*pair) for pair in zip(problem.weights, problem.scales, strict=True)]
    start = errors(problem, rtn_codes(problem))
    own = joint_of(problem) if joint else None
    return start, adaround.learn(problem, starts, recipe, start, 1, joint=own, **more)


def errors(problem, codes):
    return block_error(problem, quantized_weights(problem, codes), problem.train)


def fix(monkeypatch):
    """The scale stays what it is at the start, and every step is taken."""
    start = LossScale.__init__

    def fixed(self, *arguments):
        start(self, *arguments)
        self.is_dynamic = False

    monkeypatch.setattr(LossScale, "__init__", fixed)


@pytest.mark.parametrize("joint", [False, True])
def test_gradients_that_overflow_at_the_start_cost_a_few_steps(
    problems, too_steep, monkeypatch, joint
):
    with monkeypatch.context() as patched:
        fix(patched)
        with pytest.raises(Diverged, match="After 2 of 40 steps its error is no finite number"):
            learn(problems[mx.float16], joint)
    start, learned = learn(problems[mx.float16], joint)
    assert 2 <= learned.loss_scale["skipped"] <= 10
    assert learned.loss_scale["last"] == 2.0 ** (28 - learned.loss_scale["skipped"])
    last = learned.state.history[-1]
    assert last["skipped"] == learned.loss_scale["skipped"]
    assert last["loss_scale"] == learned.loss_scale["last"]
    reached = errors(problems[mx.float16], learned.codes)
    wanted = errors(problems[mx.float32], learn(problems[mx.float32], joint)[1].codes)
    # The steps that it lost, of 40, and float16's own rounding.
    assert wanted < 0.7 * start
    assert reached == pytest.approx(wanted, rel=0.15)


class Stop(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("joint", [False, True])
def test_a_run_that_stops_behind_a_skipped_step_ends_with_the_same_bits(
    problems, too_steep, monkeypatch, tmp_path, joint
):
    # The scale grows so fast that it overflows again and again.
    monkeypatch.setattr(loss_scale, "GROWTH_INTERVAL", 2)
    recipe = replace(RECIPE, iterations=20)
    _, straight = learn(problems[mx.float16], joint, recipe)
    skipped = [point["skipped"] for point in straight.state.history]
    first = straight.state.history[0]["iteration"]
    behind = [first + at for at in range(1, len(skipped)) if skipped[at] > skipped[at - 1]]
    assert behind
    monkeypatch.setattr(learning, "SAVE_SECONDS", 0.0)
    resume = Resume(tmp_path / "state.safetensors", "k")
    iterate = adaround.Learner.iterate

    def dying(self, state):
        if state.iteration == behind[0]:
            raise Stop
        iterate(self, state)

    with monkeypatch.context() as patched:
        patched.setattr(adaround.Learner, "iterate", dying)
        with pytest.raises(Stop):
            learn(problems[mx.float16], joint, recipe, resume=resume)
    kept = resume.load()
    assert kept is not None
    assert kept.iteration == behind[0]
    _, again = learn(problems[mx.float16], joint, recipe, resume=resume)
    for one, other in zip(again.state.arrays(), straight.state.arrays(), strict=True):
        assert mx.array_equal(one, other)
    assert again.state.history == straight.state.history
    assert again.loss_scale == straight.loss_scale


def test_a_block_whose_gradients_always_overflow_is_told(problems):
    flat = replace(problems[mx.float16], energies=(1e-12, 1e-12))
    with pytest.raises(Diverged, match="After 0 of 40 steps its gradients overflow float16"):
        learn(flat)


# --------------------------------------------------------------------------------- tuning


def tuned(dtype, **how):
    model = build_network(seed=4, depth_multimodal=1, dtype=dtype, float16_dtype=dtype)
    model.module.set_dtype(dtype)
    packed = {
        linear.name: round_to_nearest(linear.module.weight, Grid("group", 3, 32))
        for linear in model.linears
    }
    rows = velocity_rows(model, [random_trajectory(seed, 2, dtype) for seed in range(4)], 1)
    recipe = tuned_recipe(
        tune_iterations=16, tune_batch_size=3, tune_learning_rate=0.01, tune_rows_at_once=None
    )
    return tune(model, packed, rows, recipe, 7, **how)


def test_tuning_skips_what_overflows_too(too_steep_for_tuning, monkeypatch):
    with monkeypatch.context() as patched:
        fix(patched)
        document = tuned(mx.float16).document
        assert "is no finite number" in document["diverged"]["reason"]
        assert document["kept"] == "start"
    half, single = tuned(mx.float16).document, tuned(mx.float32).document
    assert half["loss_scale"]["skipped"] >= 2
    assert half["history"][-1]["skipped"] == half["loss_scale"]["skipped"]
    assert half["kept"] == "tuned"
    assert single["loss_scale"] is None
    # The steps that it lost, of 16.
    gains = [one["error"]["tuned"] / one["error"]["start"] for one in (half, single)]
    assert gains[1] < 0.95
    assert gains[0] == pytest.approx(gains[1], abs=0.04)


def test_a_tuning_that_stops_behind_a_skipped_step_ends_with_the_same_bits(
    too_steep_for_tuning, monkeypatch, tmp_path
):
    monkeypatch.setattr(loss_scale, "GROWTH_INTERVAL", 2)
    straight = tuned(mx.float16)
    monkeypatch.setattr(learning, "SAVE_SECONDS", 0.0)
    resume = Resume(tmp_path / "state.safetensors", "k")
    iterate = Tuner.iterate
    taken: list[float] = []

    def dying(self, state):
        if len(taken) > 6 and taken[-1] == taken[-2]:
            raise Stop
        iterate(self, state)
        taken.append(self.loss_scale.read(state.scaling).taken)

    with monkeypatch.context() as patched:
        patched.setattr(Tuner, "iterate", dying)
        with pytest.raises(Stop):
            tuned(mx.float16, resume=resume)
    kept = resume.load()
    assert kept is not None
    assert kept.iteration == len(taken)
    again = tuned(mx.float16, resume=resume)
    assert again.document == straight.document
    for name, one in again.packed.items():
        assert mx.array_equal(one.scales, straight.packed[name].scales)
        assert mx.array_equal(one.biases, straight.packed[name].biases)
