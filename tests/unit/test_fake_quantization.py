"""Kernels of fake quantization: their arguments, and that each backend's agrees with the formulas.

What they compute is tested beside what uses it: test_simulate.py, test_granularities.py.
"""

from __future__ import annotations

import numpy as np
import pytest

from ditquant.backend import backend_name, device_arrays, mx, to_numpy
from ditquant.fake_quantization import kernel_arguments, kernel_of, portable_kernel
from ditquant.quant_config import Numbers

KINDS = [("static", None), ("dynamic-tensor", None), ("dynamic-tensor", 16)]
KINDS += [("dynamic-token", group) for group in (None, 8, 16, 48)]


def test_arrays_keep_their_shapes_and_values():
    values = [1.5, np.arange(3), -2.0, np.ones((2, 2)) / 3]
    arrays = device_arrays(values)
    assert [array.shape for array in arrays] == [(), (3,), (), (2, 2)]
    for array, value in zip(arrays, values, strict=True):
        assert array.dtype == mx.float32
        np.testing.assert_array_equal(to_numpy(array), np.float32(value))


def test_one_number_alone_is_enough():
    assert [array.item() for array in device_arrays([7.0])] == [7.0]
    assert device_arrays([np.zeros(0), 3.0])[1].item() == 3.0


def test_arguments_are_scale_shift_and_extreme_codes():
    numbers = {
        "a": Numbers(8, 0.5, np.array([1.0, 2.0])),
        "b": Numbers(4, None, -0.25, unsigned=True),
        "c": Numbers(6, np.array([0.1, 0.2]), 0.0),
    }
    found = {
        name: [to_numpy(array).tolist() for array in arrays]
        for name, arrays in kernel_arguments(numbers).items()
    }
    tenth, fifth = np.float32([0.1, 0.2]).tolist()
    assert found == {
        "a": [0.5, [1.0, 2.0], -128.0, 127.0],
        "b": [-0.25, 0.0, 15.0],
        "c": [[tenth, fifth], 0.0, -32.0, 31.0],
    }


@pytest.mark.parametrize(("granularity", "group"), KINDS)
@pytest.mark.parametrize("shape", [(2, 5, 1, 48), (1, 48)])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16])
def test_the_kernel_of_this_backend_agrees_with_the_formulas(granularity, group, shape, dtype):
    channels = shape[-1]
    keys = mx.random.split(mx.random.key(4))
    x = (3 * mx.random.normal(shape, key=keys[0])).astype(dtype)
    shift = to_numpy(0.2 * mx.random.normal((channels,), key=keys[1]))
    scale = 0.05 if granularity == "static" else None
    for one in (Numbers(8, scale, shift), Numbers(6, scale, -4.0, unsigned=True)):
        arguments = kernel_arguments({"": one})[""]
        found = kernel_of(granularity, group)(x, *arguments)
        expected = portable_kernel(granularity, group)(x, *arguments)
        assert found.dtype == dtype
        assert found.shape == shape
        assert mx.array_equal(found, expected)
        assert not mx.array_equal(found, x)


@pytest.mark.skipif(backend_name() == "cuda", reason="CUDA has kernels of its own")
def test_elsewhere_the_portable_kernel_is_taken():
    for kind in KINDS:
        assert kernel_of(*kind) is portable_kernel(*kind)
