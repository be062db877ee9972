"""Kernels of fake quantization: their arguments, and that each backend's agrees with the formulas.

What they compute is tested beside what uses it: test_simulate.py, test_granularities.py.
"""

from __future__ import annotations

import numpy as np
import pytest

from ditquant.activations.fake_quantization import PortableQuantizer, quantizer_of
from ditquant.activations.quant_params import QuantParams, stacked
from ditquant.backend import backend_name, device_arrays, mx, to_numpy
from ditquant.kernels.cuda import fake_quantization as fake_quantization_cuda
from ditquant.kernels.cuda.fake_quantization import CudaQuantizer
from support.schemes import fake_quantize
from support.schemes import granularity as named

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


CHANNEL_SHIFT = np.array([1.0, 2.0])
NUMBERS = [
    QuantParams(8, 0.5, CHANNEL_SHIFT),
    QuantParams(4, 0.25, -0.25, unsigned=True),
    QuantParams(6, np.array([0.1, 0.2]), 0.0),
]


def listed(arguments):
    return [[to_numpy(array).tolist() for array in of_input] for of_input in arguments]


def test_arguments_are_scale_shift_and_extreme_codes():
    tenth, fifth = np.float32([0.1, 0.2]).tolist()
    assert listed(PortableQuantizer(named("static"), 2).arguments(stacked(NUMBERS))) == [
        [0.5, [1.0, 2.0], -128.0, 127.0],
        [0.25, -0.25, 0.0, 15.0],
        [[tenth] * 2 + [fifth] * 2, 0.0, -32.0, 31.0],
    ]


def test_ranges_at_run_time_have_no_scale():
    numbers = [QuantParams(4, None, -0.25, unsigned=True), QuantParams(8, None, 0.0)]
    assert listed(PortableQuantizer(named("dynamic-token"), None).arguments(stacked(numbers))) == [
        [-0.25, 0.0, 15.0],
        [0.0, -128.0, 127.0],
    ]


def test_numbers_for_cuda_are_one_vector_in_which_each_input_has_its_place():
    arguments = CudaQuantizer(named("static"), 2).arguments(stacked(NUMBERS))
    together = arguments[0][0]
    assert all(one[0] is together for one in arguments)
    found = []
    for _, place, shifts in arguments:
        assert place.dtype == mx.int32
        first, groups = place.tolist()
        low, high, shift, *scales = to_numpy(together)[first : first + 3 + groups].tolist()
        found.append([scales, shift, low, high, shifts.tolist()])
    tenth, fifth = np.float32([0.1, 0.2]).tolist()
    assert found == [
        [[0.5], 0.0, -128.0, 127.0, [1.0, 2.0]],
        [[0.25], -0.25, 0.0, 15.0, [0.0]],
        [[tenth, fifth], 0.0, -32.0, 31.0, [0.0]],
    ]


def test_a_new_sigma_sends_one_vector_to_cuda(monkeypatch):
    sent = []
    send = fake_quantization_cuda.device_arrays
    monkeypatch.setattr(
        fake_quantization_cuda,
        "device_arrays",
        lambda values, *dtype: sent.append(len(values)) or send(values, *dtype),
    )
    quantizer = CudaQuantizer(named("static"), 2)
    first = quantizer.arguments(stacked(NUMBERS))
    other = [QuantParams(6, 0.75, CHANNEL_SHIFT), *NUMBERS[1:]]
    again = quantizer.arguments(stacked(other))
    # Places and shifts once.
    assert sent == [3, 3, 1, 1]
    assert [one[1:] for one in again] == [one[1:] for one in first]
    assert to_numpy(again[0][0])[:4].tolist() == [-32.0, 31.0, 0.0, 0.75]


# Elsewhere the portable kernels would be compared with themselves; what they compute and their
# dtype are tested in test_simulate.py.
@pytest.mark.skipif(backend_name() != "cuda", reason="kernels of CUDA")
@pytest.mark.parametrize(("granularity", "group"), KINDS)
@pytest.mark.parametrize("shape", [(2, 5, 1, 48), (1, 48)])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16])
def test_the_kernel_of_this_backend_agrees_with_the_formulas(granularity, group, shape, dtype):
    channels = shape[-1]
    keys = mx.random.split(mx.random.key(4))
    x = (3 * mx.random.normal(shape, key=keys[0])).astype(dtype)
    shift = to_numpy(0.2 * mx.random.normal((channels,), key=keys[1]))
    scale = {"static": 0.05, "step": np.linspace(0.02, 0.06, channels // (group or 1))}
    kind = named(granularity), group
    for z, unsigned in ((shift, False), (-4.0, True)):
        one = QuantParams(6, scale.get(granularity), z, unsigned)
        # Not the first of the inputs: its numbers begin somewhere.
        numbers = stacked([QuantParams(8, 1.0 if one.scale is not None else None, 0.0), one])
        found, expected = (
            quantizer(x, *quantizer.arguments(numbers)[1])
            for quantizer in (quantizer_of(*kind), PortableQuantizer(*kind))
        )
        assert found.dtype == dtype
        assert found.shape == shape
        assert mx.array_equal(found, expected)
        assert not mx.array_equal(found, x)


@pytest.mark.skipif(backend_name() == "cuda", reason="CUDA has kernels of its own")
def test_elsewhere_the_portable_kernels_are_taken():
    for name, group in KINDS:
        assert isinstance(quantizer_of(named(name), group), PortableQuantizer)


def test_groups_of_channels_are_quantized_like_each_by_itself():
    x = mx.random.normal((2, 5, 1, 48), key=mx.random.key(7))
    scales, shift = np.array([0.1, 0.3, 0.2]), np.linspace(-1, 1, 48)
    found = fake_quantize(x, scales, 6, shift)
    for group, scale in enumerate(scales):
        own = slice(16 * group, 16 * (group + 1))
        alone = fake_quantize(x[..., own], scale, 6, shift[own])
        assert mx.array_equal(found[..., own], alone)
