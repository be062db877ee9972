"""Where a job's seconds go, for the last line of its log.

start       of the process, and its imports
loading     of a model's parts, until their weights are in memory
compiling   what the first pieces of repeated work took beyond later ones, which find kernels built
work        the rest
"""

from __future__ import annotations

import os
import re
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

PARTS = ("start", "loading", "compiling", "work")
# A sampler tells of a step before it is computed, so the first step ends with the second piece.
_FIRST = 2

_spent = {"start": 0.0, "loading": 0.0, "compiling": 0.0}
# Seconds of what is nested in what is being counted, by depth.
_nested = [0.0]


def process_age() -> float:
    """Seconds since this process was created; 0 where the system does not tell."""
    try:
        ticks = int(Path("/proc/self/stat").read_text("utf-8").rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        pass
    try:
        import psutil  # comes with Snakemake; an environment of conda's may lack it
    except ImportError:
        return 0.0
    return max(0.0, time.time() - float(psutil.Process().create_time()))


@contextmanager
def counted_as(part: str) -> Iterator[None]:
    """What is done within counts as that part, but for what is counted inside. Also a decorator."""
    began = time.monotonic()
    _nested.append(0.0)
    try:
        yield
    finally:
        seconds = time.monotonic() - began
        _spent[part] += seconds - _nested.pop()
        _nested[-1] += seconds


def note_pieces(seconds: Sequence[float]) -> None:
    """Counts as compiling what the first pieces of repeated work took beyond as many later ones."""
    first, later = seconds[:_FIRST], seconds[_FIRST:]
    if len(later) >= _FIRST:
        _spent["compiling"] += max(0.0, sum(first) - len(first) * statistics.median(later))


def split(age: float, seconds: float) -> dict[str, float]:
    """Seconds by part of a job that began at the process's `age` and lasted `seconds`."""
    parts = {**_spent, "start": age + _spent["start"]}
    return {**parts, "work": max(0.0, age + seconds - sum(parts.values()))}


def describe(parts: Mapping[str, float], peak_bytes: int | None = None) -> str:
    """One line; `peak_bytes` is the most that MLX's allocator held."""
    text = f"{sum(parts.values()):.2f} s: " + ", ".join(f"{s:.2f} {p}" for p, s in parts.items())
    return text if peak_bytes is None else f"{text}; {peak_bytes / 1e9:.3f} GB at most"


def read_times(log: str) -> dict[str, float]:
    """Seconds by part, and "peak_bytes" if told, from a finished job's log; empty without them."""
    numbers = ", ".join(rf"(?P<{part}>[\d.]+) {part}" for part in PARTS)
    found = re.search(rf"done in [\d.]+ s: {numbers}(?:; (?P<peak>[\d.]+) GB at most)?$", log, re.M)
    if found is None:
        return {}
    peak = {"peak_bytes": float(found["peak"]) * 1e9} if found["peak"] else {}
    return {part: float(found[part]) for part in PARTS} | peak
