"""The platform room: which BLAS serves, and the same bits on any number of threads."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from ditquant.backend import BLAS, compiled, describe_device, is_accelerated, mx

SCRIPTS = Path(__file__).parents[2] / "scripts"
LINUX_CPU = platform.system() == "Linux" and not is_accelerated()

PRODUCTS = """
import sys
sys.path.insert(0, {scripts!r})
import hashlib
import numpy as np
from ditquant.backend import mx
mx.random.seed(0)
digest = hashlib.sha256()
for rows, inputs, outputs in ((1, 256, 256), (168, 256, 1024), (1344, 1024, 256), (37, 130, 19)):
    # A slice moves the start of the memory: alignment must not matter either.
    x = mx.random.normal((rows + 1, inputs))[1:]
    digest.update(np.array(x @ mx.random.normal((inputs, outputs))).tobytes())
print(digest.hexdigest())
"""


@pytest.mark.skipif(not LINUX_CPU, reason="MLX links a real BLAS elsewhere")
def test_set_up_alone_puts_a_real_blas_in_place():
    if platform.machine() == "x86_64":
        assert BLAS.name == "MKL"
    assert f"BLAS: {BLAS.name}" in describe_device()


@pytest.mark.skipif(not LINUX_CPU, reason="threads are chosen by the accelerator")
def test_products_have_the_same_bits_on_any_number_of_threads():
    program = PRODUCTS.format(scripts=str(SCRIPTS))
    digests = set()
    for threads in ("1", "2", "4"):
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        digests.add(done.stdout)
    assert len(digests) == 1


def test_without_a_compiler_functions_run_eagerly(monkeypatch):
    monkeypatch.setenv("PATH", "")

    def double(x: mx.array) -> mx.array:
        return 2 * x

    function = compiled(double)
    assert (function is double) == LINUX_CPU
    assert function(mx.array(3.0)).item() == 6.0
