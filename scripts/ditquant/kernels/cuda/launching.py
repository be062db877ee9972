"""Makes a kernel from its source."""

from __future__ import annotations

from functools import cache
from typing import Any

from ...backend import mx

# N adjacent values that a thread reads and writes at once.
_HEADER = """
template <typename T, int N>
struct alignas(sizeof(T) * N) Values { T value[N]; };
"""


@cache
def cuda_kernel(name: str, source: str, inputs: tuple[str, ...], header: str = "") -> Any:
    """`mx.fast.cuda_kernel` of a source that writes one array, `out`.

    Args:
        source: the kernel's body. It may use `Values<T, N>`, which a thread reads at once.
        inputs: names of the arrays it reads.
        header: what the body calls.
    """
    return mx.fast.cuda_kernel(
        name=f"ditquant_{name}",
        input_names=list(inputs),
        output_names=["out"],
        source=source,
        header=_HEADER + header,
    )
