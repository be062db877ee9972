"""Kernels of fake quantization: their arguments, and that each backend's agrees with the formulas.

What they compute is tested beside what uses it: test_simulate.py, test_granularities.py.
"""

from __future__ import annotations

import numpy as np
import pytest

from ditquant import fake_quantization
from ditquant.backend import backend_name, device_arrays, mx, to_numpy
from ditquant.fake_quantization import Quantizer, fake_quantize, kernel_of, portable_kernel
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


def test_arguments_are_scale_shift_and_extreme_codes():
    found = {
        name: [to_numpy(array).tolist() for array in arrays]
        for name, arrays in Quantizer("static", 2).arguments(NUMBERS).items()
    }
    tenth, fifth = np.float32([0.1, 0.2]).tolist()
    assert found == {
        "a": [[0.5], [1.0, 2.0], [-128.0], [127.0]],
        "b": [[-0.25], [0.0], [15.0]],
        "c": [[tenth] * 2 + [fifth] * 2, [0.0], [-32.0], [31.0]],
    }


def test_what_was_sent_is_not_sent_again(monkeypatch):
    sent = []
    send = fake_quantization.device_vectors
    monkeypatch.setattr(
        fake_quantization, "device_vectors", lambda values: sent.append(values) or send(values)
    )
    quantizer = Quantizer("static", 2)
    shift = NUMBERS["a"].shift
    first = quantizer.arguments(NUMBERS)
    other = {**NUMBERS, "a": Numbers(6, 0.75, shift), "c": Numbers(6, np.array([0.3, 0.4]), 0.5)}
    again = quantizer.arguments(other)
    # Shifts and codes, then scales; and later a shift that was never seen.
    assert [len(values) for values in sent] == [8, 1, 1, 1]
    assert sent[2] == [0.5]
    np.testing.assert_array_equal(sent[3][0], [0.75, 0.3, 0.4])
    assert again["a"][1] is first["a"][1]
    assert again["b"] == first["b"]
    assert [array.tolist() for array in again["a"]] == [[0.75], [1.0, 2.0], [-32.0], [31.0]]
    # An array is known by its identity, however equal another is.
    equal = quantizer.arguments({**NUMBERS, "a": Numbers(8, 0.5, shift + 1)})
    assert equal["a"][1].tolist() == [2.0, 3.0]


@pytest.mark.parametrize(("granularity", "group"), KINDS)
@pytest.mark.parametrize("shape", [(2, 5, 1, 48), (1, 48)])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16])
def test_the_kernel_of_this_backend_agrees_with_the_formulas(granularity, group, shape, dtype):
    channels = shape[-1]
    keys = mx.random.split(mx.random.key(4))
    x = (3 * mx.random.normal(shape, key=keys[0])).astype(dtype)
    shift = to_numpy(0.2 * mx.random.normal((channels,), key=keys[1]))
    scale = {"static": 0.05, "step": np.linspace(0.02, 0.06, channels // (group or 1))}
    kind = granularity, group
    quantizers = Quantizer(*kind), Quantizer(*kind, portable_kernel(*kind))
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
        assert kernel_of(*kind) is portable_kernel(*kind)


def test_groups_of_channels_are_quantized_like_each_by_itself():
    x = mx.random.normal((2, 5, 1, 48), key=mx.random.key(7))
    scales, shift = np.array([0.1, 0.3, 0.2]), np.linspace(-1, 1, 48)
    found = fake_quantize(x, scales, 6, shift)
    for group, scale in enumerate(scales):
        own = slice(16 * group, 16 * (group + 1))
        alone = fake_quantize(x[..., own], scale, 6, shift[own])
        assert mx.array_equal(found[..., own], alone)
