"""Up to how many rows `mx.quantized_matmul` beats unpacking and multiplying: KERNEL_ROWS, measured.

    .venv/bin/python benchmarks/kernel_rows.py [--dtype float32] [--json kernel_rows.json]

The four shapes of an MM-DiT block at 1, 2, 4, ... rows, until unpacking is faster. The smallest of
the four numbers belongs into `checkpoints/quantized.py`, for this backend and dtype.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from forward_time import GROUP_SIZE, seconds  # puts ditquant on the path

from ditquant.backend import describe_device, is_accelerated, mx
from ditquant.checkpoints import quantized
from ditquant.models.load import DTYPES
from ditquant.weights.grids import Packed


def product_seconds(
    way: quantized.Product, xs: list[mx.array], packed: Packed, repeat: int
) -> float:
    """Of one product, evaluated with others: the start of an evaluation does not decide."""
    return seconds(lambda: [way(x, packed, None) for x in xs], repeat) / len(xs)


def measure(width: int, dtype: mx.Dtype, repeat: int) -> list[dict[str, Any]]:
    """Both ways at every number of rows, for attention, fc1, fc2 (4 bits) and adaLN (8 bits)."""
    measured = []
    shapes = [(1, 1, 4), (4, 1, 4), (1, 4, 4), (6, 1, 8)]
    for outputs, inputs, bits in ((width * out, width * into, b) for out, into, b in shapes):
        weight = mx.random.normal((outputs, inputs)).astype(mx.float16)
        packed = Packed(*mx.quantize(weight, GROUP_SIZE, bits), bits, GROUP_SIZE)
        faster = 0
        for rows in (2**power for power in range(12)):
            xs = [mx.random.normal((rows, inputs)).astype(dtype) for _ in range(8)]
            mx.eval(xs, packed.weight, packed.scales, packed.biases)
            kernel = product_seconds(quantized.kernel_product, xs, packed, repeat)
            dequantized = product_seconds(quantized.dequantized_product, xs, packed, repeat)
            shape = {"outputs": outputs, "inputs": inputs, "bits": bits, "rows": rows}
            measured.append({**shape, "kernel_seconds": kernel, "dequantized_seconds": dequantized})
            if kernel >= dequantized:
                break
            faster = rows
        print(f"{outputs} x {inputs}, {bits} bits: the kernel is faster up to {faster} rows")
    return measured


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description="Rows up to which MLX's packed kernel is faster.")
    parser.add_argument("--width", type=int, default=1536, help="of the model; SD3-medium's")
    parser.add_argument("--dtype", choices=DTYPES, help="float16; float32 on a CPU")
    parser.add_argument("--repeat", type=int, default=10, help="calls; the median counts")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args(arguments)
    dtype = options.dtype or ("float16" if is_accelerated() else "float32")
    print(f"{describe_device()}, {dtype}")
    record = {
        "device": describe_device(),
        "dtype": dtype,
        "products": measure(options.width, DTYPES[dtype], options.repeat),
    }
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    return record


if __name__ == "__main__":
    main()
