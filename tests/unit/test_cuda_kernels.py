"""How the CUDA kernels are started: sizes that fit, on machines without CUDA too.

What they compute is compared on CUDA itself: test_fake_quantization.py, test_packed_blocks.py,
test_measuring.py, test_rotation.py.
"""

from __future__ import annotations

import re
from math import prod

import pytest

from ditquant.backend import mx
from ditquant.kernels.cuda import fake_quantization, measuring, rotation, unpacking
from ditquant.kernels.cuda.fake_quantization import (
    quantize_entries,
    quantize_listed,
    quantize_tokens,
)
from ditquant.kernels.cuda.unpacking import unpack_parts
from ditquant.weights.grids import Grid, Packed, round_to_nearest

SHAPES = [(2, 1024, 1, 1536), (2, 154, 1, 6144), (2, 1, 1536), (3, 7, 1, 36), (1, 5)]


class Started(list):
    """Stands for kernels: notes how each was started, and returns zeros."""

    def make(self, source, inputs):
        def start(*, inputs: list, template, grid, threadgroup, output_shapes, output_dtypes):
            constants = dict(template)
            declared = re.findall(r"\b([A-Z][A-Z_0-9]*) = ", source)
            known = {*constants, *declared, "T"}
            missing = set(re.findall(r"\b[A-Z][A-Z_]*[A-Z0-9_]*\b", source)) - known
            assert not missing, f"the source uses {missing}"
            assert len(inputs) == names
            # MLX rounds a grid up to whole blocks; threads of one that is cut off would be missing.
            assert grid[0] % threadgroup[0] == 0
            self.append((constants, grid, threadgroup[0]))
            pairs = zip(output_shapes, output_dtypes, strict=True)
            return [mx.zeros(shape, dtype=dtype) for shape, dtype in pairs]

        names = len(inputs)
        return start


@pytest.fixture
def started(monkeypatch):
    started = Started()
    for module in (fake_quantization, measuring, rotation):
        monkeypatch.setattr(
            module,
            "cuda_kernel",
            lambda name, source, inputs, header="": started.make(source, inputs),
        )
    source = unpacking.source_of
    monkeypatch.setattr(
        unpacking, "_kernel", lambda parts: started.make(source(parts), ("w", "s", "b"))
    )
    return started


def numbers(shape, shifts):
    return mx.zeros(9), mx.array([3, 2]), mx.zeros((shape[-1] if shifts > 1 else 1,))


GROUPS = [
    (shape, group) for shape in SHAPES for group in (None, 4, 64) if shape[-1] % (group or 1) == 0
]


@pytest.mark.parametrize(("shape", "length"), GROUPS)
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16])
def test_every_value_with_a_known_scale_has_its_thread(started, shape, length, dtype):
    x = mx.zeros(shape, dtype=dtype)
    result = quantize_listed(x, *numbers(shape, 2), length)
    assert (result.shape, result.dtype) == (shape, dtype)
    ((constants, grid, _),) = started
    assert constants["COUNT"] * constants["N"] == x.size
    assert constants["CHANNELS"] == shape[-1]
    assert constants["SHIFTS"] == shape[-1]
    # The values of a thread are of one group.
    assert (length or shape[-1]) % constants["N"] == 0
    assert grid[0] >= constants["COUNT"]


@pytest.mark.parametrize(("shape", "group"), GROUPS)
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_every_group_of_channels_has_its_threads(started, shape, dtype, group):
    x = mx.zeros(shape, dtype=dtype)
    result = quantize_tokens(x, *numbers(shape, 2), group)
    assert (result.shape, result.dtype) == (shape, dtype)
    ((constants, grid, threads),) = started
    length, lanes, together = (constants[name] for name in ("LENGTH", "LANES", "N"))
    assert length == (group or shape[-1])
    assert constants["PARTS"] * length == prod(shape)
    assert grid[0] >= constants["PARTS"] * lanes
    # The lanes of a group are neighbours in one warp, and none of them is idle.
    assert 32 % lanes == 0
    assert threads % 32 == 0
    assert length % together == 0
    assert lanes * together <= length
    assert together * dtype.size in (16, dtype.size)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("shifts", [1, 2])
def test_every_entry_of_the_batch_has_its_threads(started, shape, shifts):
    x = mx.zeros(shape, dtype=mx.float16)
    result = quantize_entries(x, *numbers(shape, shifts))
    assert (result.shape, result.dtype) == (shape, mx.float16)
    (of_extremes, extremes, threads), (constants, grid, _) = started
    assert of_extremes == constants
    assert extremes[0] == shape[0] * constants["PARTS"] * threads
    assert constants["COUNT"] * constants["N"] == prod(shape[1:])
    assert constants["CHANNELS"] % constants["N"] == 0
    assert constants["SHIFTS"] == (shape[-1] if shifts > 1 else 1)
    assert grid[1] == shape[0]
    assert grid[0] >= constants["COUNT"]
    # A warp reads the maxima of all parts.
    assert constants["THREADS"] == threads <= 32 * 32


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_every_word_has_its_thread(started, bits):
    weights = [mx.random.normal(shape) for shape in ((64, 128), (32, 64), (64, 64))]
    packed = [round_to_nearest(weight, Grid("group", bits, 64)) for weight in weights]
    words = 64 * bits // 32
    joint = Packed(
        mx.concatenate([one.weight.reshape(-1, words) for one in packed]),
        mx.concatenate([one.scales.reshape(-1, 1) for one in packed]),
        mx.concatenate([one.biases.reshape(-1, 1) for one in packed]),
        bits,
        64,
    )
    ends, shapes = [128, 160, 224], [weight.shape for weight in weights]
    unpacked = unpack_parts(joint, ends, shapes, mx.bfloat16)
    assert [(one.shape, one.dtype) for one in unpacked] == [(s, mx.bfloat16) for s in shapes]
    ((constants, grid, _),) = started
    assert [constants[f"END_{part}"] for part in range(3)] == ends
    assert constants["PER_WORD"] * constants["BITS"] == 32
    assert constants["WORDS"] * constants["PER_WORD"] == joint.group_size
    assert grid[0] >= joint.weight.size


@pytest.mark.parametrize("size", [2, 16, 64, 512])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16])
def test_every_rotated_channel_has_its_thread(started, size, dtype):
    x = mx.zeros((3, 5, 1, 3 * size), dtype=dtype)
    result = rotation.launch(x, mx.ones((3 * size,)), size)
    assert (result.shape, result.dtype) == (x.shape, dtype)
    ((constants, grid, threads),) = started
    assert constants["LANES"] * constants["N"] == size
    # A group's threads are neighbours in one warp.
    assert 32 % constants["LANES"] == 0
    assert threads % 32 == 0
    assert constants["CHANNELS"] == 3 * size
    assert constants["VECTORS"] * constants["N"] == x.size
    assert grid[0] >= constants["VECTORS"]


@pytest.mark.parametrize(
    "shape", [(2048, 1536), (2048, 6144), (308, 1536), (2, 1536), (7, 36), (1, 5)]
)
@pytest.mark.parametrize("size", [2, 4])
def test_every_measured_value_has_its_thread(shape, size):
    rows, channels = shape
    layout = measuring.layout_of(rows, channels, size)
    assert layout.chunks * layout.vectors * layout.together == channels
    assert layout.together * size in (16, size)
    # Threads of one row are neighbours in a warp, and no slab is empty.
    assert 32 % layout.vectors == 0
    assert (layout.slabs - 1) * layout.slab_rows < rows <= layout.slabs * layout.slab_rows
    assert layout.slab_rows % (256 // layout.vectors) == 0


def test_measurements_are_started_for_all_blocks_and_joined_by_layout(started):
    arrays = [mx.zeros((300, 64)), mx.zeros((2, 150, 1, 64)), mx.zeros((5, 36))] + 16 * [
        mx.zeros((300, 64))
    ]
    measuring._measuring.cache_clear()
    measuring._joining.cache_clear()
    measurements = [measuring.measure(x) for x in arrays]
    for measurement, x in zip(measurements, arrays, strict=True):
        assert measurement.found.shape == (measurement.layout.length,)
        assert measurement.layout.rows * measurement.layout.channels == x.size
    constants, grid, threads = started[0]
    layout = measurements[0].layout
    assert grid == (layout.chunks * threads, layout.slabs, 1)
    assert constants["THREADS"] == threads == 256
    passes = [measuring.evaluated(measurements) for _ in range(3)]
    # 18 arrays of one layout, at most 16 together, and one of another.
    assert [rows.shape[0] for rows in passes[0]] == [16, 2, 1]
    fields = measuring.fields_of(measurements, passes)
    assert len(fields) == len(arrays)
    assert fields[2]["channel_max"].shape == (3, 36)
    assert fields[0]["token_histogram"].shape == (3, 513)
    joining, grid, threads = started[-1]
    assert grid[0] // threads == 1 + joining["BIN_BLOCKS"] + 1
    assert joining["BIN_BLOCKS"] * joining["BINS_OF_BLOCK"] >= joining["BINS"]
    measuring._measuring.cache_clear()
    measuring._joining.cache_clear()
