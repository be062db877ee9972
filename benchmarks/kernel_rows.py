"""Up to how many rows `mx.quantized_matmul` beats unpacking and multiplying: KERNEL_ROWS, measured.

    .venv/bin/python benchmarks/kernel_rows.py [--dtype float32]

The four shapes of an MM-DiT block at 1, 2, 4, ... rows, until unpacking is faster. The smallest of
the four numbers belongs into `checkpoints/quantized.py`, for this backend and dtype.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from forward_time import GROUP_SIZE, seconds
from records import machine, save_section

from ditquant.backend import is_accelerated, mx
from ditquant.checkpoints import quantized
from ditquant.models.load import DTYPES
from ditquant.weights.grids import Packed


def product_seconds(
    way: quantized.Product, xs: list[mx.array], packed: Packed, repeat: int
) -> float:
    """Of one product, evaluated with others: the start of an evaluation does not decide."""
    return seconds(lambda: [way(x, packed, None) for x in xs], repeat) / len(xs)


def measure(width: int, dtype: mx.Dtype, repeat: int) -> dict[str, dict[str, Any]]:
    """A row for attention, fc1, fc2 (4 bits) and adaLN (8 bits): the last rows tried, both ways."""
    measured = {}
    shapes = [(1, 1, 4), (4, 1, 4), (1, 4, 4), (6, 1, 8)]
    for outputs, inputs, bits in ((width * out, width * into, b) for out, into, b in shapes):
        weight = mx.random.normal((outputs, inputs)).astype(mx.float16)
        codes, scales, biases = mx.quantize(weight, GROUP_SIZE, bits)
        packed = Packed(codes, scales, biases, bits, GROUP_SIZE)
        faster, tried = 0, {}
        for rows in (2**power for power in range(12)):
            xs = [mx.random.normal((rows, inputs)).astype(dtype) for _ in range(8)]
            mx.eval(xs, packed.weight, packed.scales, packed.biases)
            kernel, dequantized = (
                1e3 * product_seconds(way, xs, packed, repeat)
                for way in (quantized.kernel_product, quantized.dequantized_product)
            )
            tried = {"tried": rows, "kernel_ms": kernel, "dequantized_ms": dequantized}
            if kernel >= dequantized:
                break
            faster = rows
        name = f"{outputs} x {inputs}, {bits} bits"
        measured[name] = {"rows": faster, **tried}
        print(f"{name}: the kernel is faster up to {faster} rows", flush=True)
    return measured


def main(arguments: list[str] | None = None) -> dict[str, dict[str, Any]]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--width", type=int, default=1536, help="of the model; SD3-medium's")
    parser.add_argument("--dtype", choices=DTYPES, help="float16; float32 on a CPU")
    parser.add_argument("--repeat", type=int, default=10, help="calls; the median counts")
    parser.add_argument("--json", type=Path, help="the record")
    options = parser.parse_args(arguments)
    dtype = options.dtype or ("float16" if is_accelerated() else "float32")
    rows = measure(options.width, DTYPES[dtype], options.repeat)
    if options.json:
        command = f"benchmarks/kernel_rows.py --width {options.width}"
        save_section(options.json, "rows", rows, command=command, machine=f"{machine()}, {dtype}")
    return rows


if __name__ == "__main__":
    main()
