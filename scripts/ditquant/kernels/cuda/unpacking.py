"""Unpacking several weights by one CUDA kernel, each into an array of its own.

`mx.dequantize` takes 113 us for the weights of a block of SD3-medium on an H200, with a thread for
each byte, and the host as long again to cut the result into twelve weights. Here a thread unpacks a
whole word, to where it belongs. The values are those of `mx.dequantize`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from ...backend import compiled, mx
from ...weights.grids import Packed

_THREADS = 256

_SOURCE = """
    struct alignas(sizeof(T) * PER_WORD) Values {{ T value[PER_WORD]; }};
    const unsigned int i = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned int group = i / WORDS;
    if (group >= END_{last}) return;
    T* out = out_0;
    unsigned int first = 0;
    {choices}
    const float scale = float(scales[group]), bias = float(biases[group]);
    const unsigned int word = weight[i];
    Values values;
    #pragma unroll
    for (int j = 0; j < PER_WORD; j++) {{
        const unsigned int code = (word >> (j * BITS)) & ((1u << BITS) - 1u);
        values.value[j] = T(float(code) * scale + bias);
    }}
    reinterpret_cast<Values*>(out)[i - first * WORDS] = values;
"""


def source_of(parts: int) -> str:
    """The kernel's source for so many weights."""
    choices = "\n    ".join(
        f"if (group >= END_{part - 1}) {{ out = out_{part}; first = END_{part - 1}; }}"
        for part in range(1, parts)
    )
    return _SOURCE.format(last=parts - 1, choices=choices)


@cache
def _kernel(parts: int) -> Any:
    return mx.fast.cuda_kernel(
        name=f"ditquant_unpack_{parts}",
        input_names=["weight", "scales", "biases"],
        output_names=[f"out_{part}" for part in range(parts)],
        source=source_of(parts),
    )


@cache
def _unpacking(
    bits: int,
    words: int,
    ends: tuple[int, ...],
    shapes: tuple[tuple[int, int], ...],
    dtype: mx.Dtype,
) -> Callable[..., list[mx.array]]:
    """Of weight, scales and biases; compiled, so that a call does not describe the kernel anew."""
    sizes = {"BITS": bits, "PER_WORD": 32 // bits, "WORDS": words}
    named_ends = {f"END_{part}": end for part, end in enumerate(ends)}
    threads = -(-ends[-1] * words // _THREADS) * _THREADS

    def unpacked(*inputs: mx.array) -> list[mx.array]:
        parts: list[mx.array] = _kernel(len(shapes))(
            inputs=list(inputs),
            template=[("T", dtype), *sizes.items(), *named_ends.items()],
            grid=(threads, 1, 1),
            threadgroup=(_THREADS, 1, 1),
            output_shapes=list(shapes),
            output_dtypes=[dtype] * len(shapes),
        )
        return parts

    return compiled(unpacked)


def can_unpack(bits: int) -> bool:
    """Whether a word holds whole codes."""
    return 32 % bits == 0


def unpack_parts(
    packed: Packed, ends: Sequence[int], shapes: Sequence[tuple[int, int]], dtype: mx.Dtype
) -> list[mx.array]:
    """code * scale + bias in float32, rounded to `dtype`, of several weights that lie in one.

    Args:
        packed: (groups, 1 group) with the groups of one weight after those of another.
        ends: of each weight, the number of the group behind its last.
        shapes: of each weight.
    """
    words = packed.weight.shape[1]
    unpacked = _unpacking(packed.bits, words, tuple(ends), tuple(shapes), dtype)
    return unpacked(packed.weight, packed.scales, packed.biases)
