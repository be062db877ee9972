"""What is measured is what the linears read, once for each array."""

from __future__ import annotations

import numpy as np
import pytest

from ditquant.activations.input_statistics import merge, save_statistics
from ditquant.activations.observe import measure_image
from ditquant.backend import mx, to_numpy
from ditquant.errors import UserError
from ditquant.network.blocks import tapped
from ditquant.network.calibration import Conditioning, Trajectory
from ditquant.network.sampling import predict, sigma_schedule, strided_steps
from support.activations import count_bins
from support.models import build_network

STEPS = [0, 2, 4]


@pytest.fixture(scope="module")
def model():
    return build_network(seed=5)


def trajectory(seed: int) -> Trajectory:
    mx.random.seed(seed)
    sigmas = sigma_schedule(5, 3.0)
    return Trajectory(
        latents=mx.random.normal((6, 8, 8, 16)),
        sigmas=sigmas,
        timesteps=sigmas[:-1] * 1000,
        conditioning=Conditioning(mx.random.normal((2, 7, 32)), mx.random.normal((2, 32))),
        cfg_weight=4.0,
        prompt="a circle",
    )


@pytest.fixture(scope="module")
def measured(model):
    return measure_image(model, trajectory(0), STEPS, "tiny", "0000")


def inputs_at(model, path: Trajectory, step: int) -> dict[str, np.ndarray]:
    """Every linear's input at one step, kept whole."""
    kept = {}
    with tapped(model.linears, lambda linear, x: kept.update({linear.name: x})):
        output = predict(
            model, path.latents[step : step + 1], path.sigmas[step], path.timesteps[step],
            path.conditioning.tokens, path.conditioning.pooled, path.cfg_weight,
        )  # fmt: skip
    mx.eval(output)
    return {name: to_numpy(x).reshape(-1, x.shape[-1]) for name, x in kept.items()}


def test_measured_steps_start_at_the_first():
    assert strided_steps(50, 20) == [0, 20, 40]
    assert strided_steps(5, 1) == [0, 1, 2, 3, 4]


def test_every_linear_is_measured_and_shared_inputs_once(model, measured):
    names = [linear.name for linear in model.linears]
    assert list(measured.input_of) == names
    assert measured.input_of["mm00.img.attn.v_proj"] == "mm00.img.attn.q_proj"
    assert measured.input_of["mm01.txt.attn.k_proj"] == "mm01.txt.attn.q_proj"
    alone = [name for name in names if not name.endswith(("k_proj", "v_proj"))]
    assert list(measured.inputs) == alone
    assert measured.post_gelu == {name for name in names if name.endswith("fc2")}


def test_statistics_are_those_of_the_inputs(model, measured):
    path = trajectory(0)
    for row, step in enumerate(STEPS):
        inputs = inputs_at(model, path, step)
        for name, values in inputs.items():
            found = measured.of(name)
            # Kernels may fuse differently around the taps: a few units in the last place.
            tolerance = {"rtol": 1e-5, "atol": 1e-5}
            np.testing.assert_allclose(found.channel_min[row], values.min(axis=0), **tolerance)
            np.testing.assert_allclose(found.channel_max[row], values.max(axis=0), **tolerance)
            mean_square = found.average(found.sum_mean_square)[row]
            np.testing.assert_allclose(
                mean_square, (values.astype(np.float64) ** 2).mean(), rtol=1e-4, atol=2**-20
            )
            token_absmax = np.abs(values).max(axis=1)
            tokens = to_numpy(count_bins(mx.array(token_absmax)[:, None]))
            assert found.token_histogram[row].sum() == len(values)
            assert np.abs(found.token_histogram[row] - tokens).sum() <= 2
            expected = to_numpy(count_bins(mx.array(values)))
            assert found.count[row] == values.size
            # A value on the edge of a bin may fall to either side.
            assert np.abs(found.histogram[row] - expected).sum() <= max(2, values.size // 1000)


def test_sigmas_are_those_of_the_measured_steps(measured):
    assert measured.steps == tuple(STEPS)
    np.testing.assert_array_equal(measured.sigmas, np.array(trajectory(0).sigmas)[STEPS])


def test_the_model_is_left_as_it_was(model, measured):
    assert all(type(linear.module).__name__ == "Linear" for linear in model.linears)


def test_one_job_for_all_images_equals_one_job_an_image(model, measured, tmp_path):
    others = [
        measure_image(model, trajectory(number), STEPS, "tiny", f"{number:04d}")
        for number in (1, 2)
    ]
    # One job that goes through all images, against files of single images merged in another order.
    save_statistics(tmp_path / "one.safetensors", merge([merge([measured, others[0]]), others[1]]))
    again = [
        measure_image(build_network(seed=5), trajectory(number), STEPS, "tiny", f"{number:04d}")
        for number in (2, 0, 1)
    ]
    save_statistics(tmp_path / "many.safetensors", merge(again))
    assert (tmp_path / "one.safetensors").read_bytes() == (
        tmp_path / "many.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("parallel", [True, False])
def test_watching_a_unified_block_changes_nothing(parallel):
    """DiffusionKit writes to fc2's bias there: the write must reach the linear itself."""
    outputs, seen = [], set()
    for watched in (False, True):
        model = build_network(depth_unified=1, parallel_mlp_for_unified_blocks=parallel)
        linears = model.linears
        with tapped(linears if watched else [], lambda linear, x: seen.add(linear.name)):
            path = trajectory(0)
            outputs.append(
                predict(
                    model,
                    path.latents[:1],
                    path.sigmas[0],
                    path.timesteps[0],
                    path.conditioning.tokens,
                    path.conditioning.pooled,
                    path.cfg_weight,
                )
            )
    assert seen == {linear.name for linear in linears}
    assert mx.array_equal(*outputs)


def test_an_overflow_is_a_message(model):
    broken = build_network(seed=5)
    module = broken.module.multimodal_transformer_blocks[0].image_transformer_block.mlp.fc1
    module.bias = mx.full(module.bias.shape, float("inf"))
    with pytest.raises(UserError, match=r"infinity in the inputs of mm00\.img\.mlp\.fc2 at step 1"):
        measure_image(broken, trajectory(0), [0], "tiny", "0000")
