"""Kernels of fake quantization: their arguments, and that each backend's agrees with the formulas.

What they compute is tested beside what uses it: test_simulate.py, test_granularities.py.
"""

from __future__ import annotations

import numpy as np
import pytest

from ditquant.backend import backend_name, device_arrays, mx, to_numpy
from ditquant.fake_quantization import PortableQuantizer, fake_quantize, quantizer_of
from ditquant.fake_quantization_cuda import CudaQuantizer
from ditquant.quant_config import Numbers

KINDS = [("static", None), ("step", 8), ("step", 16)]
KINDS += [("dynamic-tensor", None), ("dynamic-tensor", 16)]
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


NUMBERS = {
    "a": Numbers(8, 0.5, np.array([1.0, 2.0])),
    "b": Numbers(4, None, -0.25, unsigned=True),
    "c": Numbers(6, np.array([0.1, 0.2]), 0.0),
}


def test_portable_arguments_are_scale_shift_and_extreme_codes():
    found = {
        name: [to_numpy(array).tolist() for array in arrays]
        for name, arrays in PortableQuantizer("static", None).arguments(NUMBERS).items()
    }
    tenth, fifth = np.float32([0.1, 0.2]).tolist()
    assert found == {
        "a": [0.5, [1.0, 2.0], -128.0, 127.0],
        "b": [-0.25, 0.0, 15.0],
        "c": [[tenth, fifth], 0.0, -32.0, 31.0],
    }


def test_numbers_for_cuda_are_one_array_in_which_each_input_has_its_place():
    quantizer = CudaQuantizer("static", None)
    arguments = quantizer.arguments(NUMBERS)
    together = arguments["a"][0]
    assert all(one[0] is together for one in arguments.values())
    values = to_numpy(together).tolist()
    found = {}
    for name, (_, place, shifts) in arguments.items():
        assert place.dtype == mx.int32
        first, groups = place.tolist()
        low, high, shift, *scales = values[first : first + 3 + groups]
        found[name] = [low, high, shift, scales, shifts.tolist()]
    tenth, fifth = np.float32([0.1, 0.2]).tolist()
    assert found == {
        "a": [-128.0, 127.0, 0.0, [0.5], [1.0, 2.0]],
        "b": [0.0, 15.0, -0.25, [], [0.0]],
        "c": [-32.0, 31.0, 0.0, [tenth, fifth], [0.0]],
    }


def test_what_no_sigma_changes_is_copied_to_cuda_once():
    quantizer = CudaQuantizer("static", None)
    first, again = quantizer.arguments(NUMBERS), quantizer.arguments(NUMBERS)
    for name in NUMBERS:
        assert first[name][0] is not again[name][0]
        assert first[name][1] is again[name][1]
        assert first[name][2] is again[name][2]


@pytest.mark.parametrize(("granularity", "group"), KINDS)
@pytest.mark.parametrize("shape", [(2, 5, 1, 48), (1, 48)])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16])
def test_the_kernel_of_this_backend_agrees_with_the_formulas(granularity, group, shape, dtype):
    channels = shape[-1]
    keys = mx.random.split(mx.random.key(4))
    x = (3 * mx.random.normal(shape, key=keys[0])).astype(dtype)
    shift = to_numpy(0.2 * mx.random.normal((channels,), key=keys[1]))
    scale = {"static": 0.05, "step": np.linspace(0.02, 0.06, channels // (group or 1))}
    quantizers = quantizer_of(granularity, group), PortableQuantizer(granularity, group)
    for z, unsigned in ((shift, False), (-4.0, True)):
        one = Numbers(6, scale.get(granularity), z, unsigned)
        # Not the first of the inputs: its numbers begin somewhere.
        numbers = {"another": one, "": one}
        found, expected = (of(x, *of.arguments(numbers)[""]) for of in quantizers)
        assert found.dtype == dtype
        assert found.shape == shape
        assert mx.array_equal(found, expected)
        assert not mx.array_equal(found, x)


@pytest.mark.skipif(backend_name() == "cuda", reason="CUDA has kernels of its own")
def test_elsewhere_the_portable_kernels_are_taken():
    for kind in KINDS:
        assert isinstance(quantizer_of(*kind), PortableQuantizer)


def test_groups_of_channels_are_quantized_like_each_by_itself():
    x = mx.random.normal((2, 5, 1, 48), key=mx.random.key(7))
    scales, shift = np.array([0.1, 0.3, 0.2]), np.linspace(-1, 1, 48)
    found = fake_quantize(x, scales, 6, shift)
    for group, scale in enumerate(scales):
        own = slice(16 * group, 16 * (group + 1))
        alone = fake_quantize(x[..., own], scale, 6, shift[own])
        assert mx.array_equal(found[..., own], alone)
