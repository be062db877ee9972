"""What a block computes with while it is learned on: the same values and gradients, cheaper."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ditquant.backend import mx, nn
from ditquant.weights import block_gradients
from ditquant.weights.block_gradients import (
    attention_multiple,
    cheap_gradients,
    gelu,
    padded_attention,
)
from ditquant.weights.reconstruct import stream_errors, weights_restored
from support.models import build_network, parameters
from support.problems import full_recipe, make_problem


def normal_cdf(x: np.ndarray) -> np.ndarray:
    return np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in x])


def test_gelu_and_its_gradient_in_float32():
    x = mx.concatenate([mx.linspace(-12.0, 12.0, 20001), mx.array([0.0, -0.0, 1e-20, 30.0])])
    wide = np.array(x, np.float64)
    cdf = normal_cdf(wide)
    density = np.exp(-(wide**2) / 2) / math.sqrt(2 * math.pi)
    # Phi is off by 2e-7 (its rational form is), relative to values of up to |x|; MLX's own GELU
    # by more.
    value = np.array(gelu(x), np.float64)
    assert np.max(np.abs(value - wide * cdf) / np.maximum(np.abs(wide), 1)) < 5e-7
    slope = np.array(mx.grad(lambda x: gelu(x).sum())(x), np.float64)
    assert np.max(np.abs(slope - (cdf + wide * density))) < 2e-6
    theirs = np.array(nn.gelu(x), np.float64)
    assert np.max(np.abs(value - theirs) / np.maximum(np.abs(wide), 1)) < 2e-6


def test_the_gradient_is_scaled_by_what_comes_after():
    x, after = mx.random.normal((2, 3, 500), key=mx.random.key(0))
    slope = mx.grad(lambda x: (gelu(x) * after).sum())(x)
    assert mx.allclose(slope, after * mx.grad(lambda x: gelu(x).sum())(x), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16])
@pytest.mark.parametrize("tokens", [7, 16, 17])
def test_filled_up_attention_is_attention(dtype, tokens):
    qkv = mx.random.normal((3, 2, 2, tokens, 8), key=mx.random.key(tokens)).astype(dtype)
    after = mx.random.normal((2, 2, tokens, 8), key=mx.random.key(1))

    def total(qkv: mx.array, multiple: int) -> mx.array:
        out = padded_attention(*qkv, 0.3, multiple)
        assert out.shape == after.shape
        assert out.dtype == dtype
        return (out.astype(mx.float32) * after).sum()

    plain, slope = mx.value_and_grad(total)(qkv, 1)
    filled, other = mx.value_and_grad(total)(qkv, 16)
    # Sums over at most 32 tokens, in another order: some units in the last place.
    unit = 2.0**-23 if dtype == mx.float32 else 2.0**-10
    assert filled.item() == pytest.approx(
        plain.item(), abs=32 * unit * mx.sum(mx.abs(after)).item()
    )
    assert mx.allclose(slope, other, rtol=32 * unit, atol=32 * unit)


def test_nothing_is_filled_up_without_a_fused_gradient():
    assert block_gradients.backend_name() != "cpu" or attention_multiple() == 1


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16])
@pytest.mark.parametrize("block", ["mm00", "mm01"])
def test_a_blocks_errors_and_gradients_stay(tmp_path, block, dtype):
    """mm01 is the last block, whose text stream has no mlp."""
    problem = make_problem(tmp_path, full_recipe("rtn"), block)
    weights = [(weight + 0.02).astype(dtype) for weight in problem.weights]
    rows = mx.array(problem.train[:4])
    if dtype == mx.float16:
        data = problem.data
        halves = {
            name: tuple(one.astype(dtype) for one in getattr(data, name))
            for name in ("inputs", "targets")
        }
        problem.block.module.set_dtype(dtype)
        modulation = tuple(one.astype(dtype) for one in problem.modulation)
        data = type(data)(**{**vars(data), **halves})
        problem = type(problem)(**{**vars(problem), "data": data, "modulation": modulation})

    def error(weights: list[mx.array]) -> mx.array:
        return 1024 * sum(stream_errors(problem, weights, rows))

    with weights_restored(problem):
        plain, slopes = mx.value_and_grad(error)(weights)
        with cheap_gradients(problem.block, multiple=16):
            cheap, others = mx.value_and_grad(error)(weights)
        mx.eval(plain, slopes, cheap, others)
    # Rounding of the activations, which add up over three products and an attention; relative to
    # each gradient's largest element.
    unit = 2.0**-23 if dtype == mx.float32 else 2.0**-10
    assert cheap.item() == pytest.approx(plain.item(), rel=100 * unit)
    for one, other in zip(slopes, others, strict=True):
        largest = mx.max(mx.abs(one.astype(mx.float32))).item()
        difference = mx.max(mx.abs(one.astype(mx.float32) - other.astype(mx.float32))).item()
        assert difference <= 100 * unit * largest


def test_the_block_is_left_as_it_was():
    for block in build_network().blocks:

        def state(block=block):
            functions = [one.activation for one in block.streams.values()]
            return list(parameters(block.module)), block.attention, functions

        before = state()
        with cheap_gradients(block, 16):
            assert state()[1] is not before[1]
        assert state() == before
