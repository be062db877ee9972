"""What checking digests costs a job that reads a block's streams.

    .venv/bin/python benchmarks/digest_time.py [--gigabytes 1.8] [--files 10] [--json FILE]

Writes block_io files of one block's streams (in float16, as SD3-medium's) into a temporary folder,
and reads them as `optimize_block` does, with digests compared and without, in turns. The ratio is
that of reading; the seconds that the digests add are what a whole job pays once. The aim is 3 % of
the job: 0.17 s of the 5.5 s that rounding to nearest takes on an H200, the shortest job that reads
this much.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))

from ditquant import artifacts
from ditquant.artifacts import save_tensors
from ditquant.backend import describe_device, mx
from ditquant.weights.block_io import BLOCK_IO, read_block

# Tokens of SD3-medium's image and text stream at 512 x 512, and their width.
TOKENS, TEXT_TOKENS, HIDDEN = 1024, 154, 1536
REPEAT = 5


def write_streams(folder: Path, gigabytes: float, files: int) -> list[Path]:
    """Files that hold what enters and leaves one block, together of the given size."""
    row = 2 * 2 * (TOKENS + TEXT_TOKENS) * HIDDEN
    rows = max(1, round(gigabytes * 1e9 / row / files))
    names = {"img": TOKENS, "txt": TEXT_TOKENS}
    paths = []
    for index in range(files):
        key = mx.random.key(index)
        tensors = {
            f"{block}.{stream}": mx.random.normal((rows, tokens, 1, HIDDEN), mx.float16, key=key)
            for block in ("mm00", "out")
            for stream, tokens in names.items()
        }
        tensors |= {"modulation": mx.zeros((rows, 1, 1, HIDDEN)), "sigmas": mx.ones(rows)}
        paths.append(folder / f"{index:04d}.safetensors")
        metadata = {"text_tokens": TEXT_TOKENS, "latent_size": [64, 64]}
        save_tensors(paths[-1], tensors, BLOCK_IO, metadata)
    return paths


def seconds(paths: list[Path]) -> float:
    start = time.perf_counter()
    read_block(paths, ["mm00"], "mm00")
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="What checking digests costs a job.")
    parser.add_argument("--gigabytes", type=float, default=1.8)
    parser.add_argument("--files", type=int, default=10)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args()
    times: dict[str, list[float]] = {"checked": [], "unchecked": []}
    with tempfile.TemporaryDirectory() as folder:
        paths = write_streams(Path(folder), options.gigabytes, options.files)
        seconds(paths)
        for _ in range(REPEAT):
            times["checked"].append(seconds(paths))
            with mock.patch.object(artifacts, "_fits", return_value=True):
                times["unchecked"].append(seconds(paths))
        size = sum(path.stat().st_size for path in paths)
    checked, unchecked = (float(np.median(times[name])) for name in ("checked", "unchecked"))
    record = {
        "machine": describe_device(), "python": platform.python_version(), "bytes": size,
        "seconds": times, "added_seconds": checked - unchecked, "ratio": checked / unchecked,
    }  # fmt: skip
    print(f"{size / 1e9:.2f} GB in {options.files} files, {record['machine']}")
    ratio = f"ratio {record['ratio']:.2f}"
    print(f"read and checked {checked:.2f} s, only read {unchecked:.2f} s: {ratio}")
    print(f"digests add {record['added_seconds']:.2f} s to a job")
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
