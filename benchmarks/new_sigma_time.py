"""Milliseconds of the host to make the numbers of a new sigma, for SD3-medium's 189 inputs.

    .venv/bin/python benchmarks/new_sigma_time.py [--json benchmarks/results/new_sigma_time.json]

Simulated activations select the numbers of each step's sigma. Where a configuration has a row for
each measured sigma, nearly every step of a process's first picture makes them anew. Two ways, on
any machine and without a model: `arrays`, an array for each number, as the portable kernels read
them, and `vector`, one vector for all inputs, as the kernels on CUDA do. Each is the median over
the 28 steps of a picture but the first, which also makes what no sigma changes; `ratio` is of the
two.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from activation_time import MEASURED, SIGMAS  # puts ditquant on the path

from ditquant.activations.fake_quantization import PortableQuantizer
from ditquant.activations.granularity import granularity_of
from ditquant.activations.quant_config import LayerConfig, QuantConfig
from ditquant.activations.sigma_lookup import SigmaLookup
from ditquant.backend import describe_device, mx
from ditquant.kernels.cuda.fake_quantization import CudaQuantizer

BLOCKS, HIDDEN = 24, 1536
# Granularities that make numbers at nearly every step, and channels of a group.
CONFIGS: dict[str, tuple[str, int | None]] = {
    "step": ("step", None),
    "step, groups of 64": ("step", 64),
    "polynomial": ("polynomial", None),
}


def inputs(blocks: int) -> Iterator[tuple[str, int, bool]]:
    """Name and width of what SD3-medium's linears read, and whether it has passed GELU."""
    widths = {"qkv": HIDDEN, "o_proj": HIDDEN, "fc1": HIDDEN, "fc2": 4 * HIDDEN}
    for block in range(blocks):
        for stream in ("img", "txt"):
            for place, width in widths.items():
                # The last text block ends behind its keys and values.
                if stream == "img" or block < blocks - 1 or place == "qkv":
                    yield f"mm{block:02d}.{stream}.{place}", width, place == "fc2"


def configuration(granularity: str, group: int | None, blocks: int) -> QuantConfig:
    """Eight bits for every input; the numbers in it do not count for the time."""
    kind = granularity_of({"granularity": granularity, "degree": 3, "variable": "sigma"})
    is_fitted = kind.is_continuous
    rows = 1 if is_fitted else len(MEASURED)
    layers = {}
    for name, channels, after_gelu in inputs(blocks):
        fine = group is not None and not after_gelu
        layers[name] = LayerConfig(
            input=name,
            channels=channels,
            bits=(8,) * rows,
            scales=() if is_fitted else (0.05,) * rows,
            shifts=(-0.17 if after_gelu else 0.0,) * rows,
            log_range=(1.0, 0.5, -0.2, 0.1) if is_fitted else (),
            shift_polynomial=(0.0, 0.5, -0.2, 0.1) if is_fitted and after_gelu else (0.0,),
            multipliers=((0.5,) * (channels // (group or 1)),) * rows if fine else (),
            channel_shift=(0.01,) * channels if fine else (),
        )
    row_of = tuple(range(len(MEASURED)))
    return QuantConfig("benchmark", MEASURED, layers, kind, row_of, channel_group=group)


def milliseconds(config: QuantConfig, quantizer: PortableQuantizer | CudaQuantizer) -> float:
    """Median over the steps of a picture but the first."""
    lookup = SigmaLookup(config, config.layers.values())
    times = []
    for sigma in SIGMAS:
        start = time.perf_counter()
        arrays = quantizer.arguments(lookup.at(sigma))
        mx.async_eval(arrays)
        times.append(time.perf_counter() - start)
        mx.synchronize()
    return statistics.median(times[1:]) * 1e3


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description="The cost of a new sigma's numbers.")
    parser.add_argument("--blocks", type=int, default=BLOCKS)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args(arguments)
    print(describe_device())
    rows = {}
    for name, (granularity, group) in CONFIGS.items():
        config = configuration(granularity, group, options.blocks)
        arrays, vector = (
            milliseconds(config, quantizer(config.granularity, group))
            for quantizer in (PortableQuantizer, CudaQuantizer)
        )
        rows[name] = {"arrays": arrays, "vector": vector, "ratio": arrays / vector}
        print(f"{name:20} {arrays:6.2f} ms arrays {vector:6.2f} ms vector {arrays / vector:5.1f} x")
    record = {"device": describe_device(), "inputs": len(config.layers), "rows": rows}
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    return record


if __name__ == "__main__":
    main()
