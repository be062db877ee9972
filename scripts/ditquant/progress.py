"""A progress bar with the time left, on a terminal and in a job's log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

from .job_times import note_pieces

Item = TypeVar("Item")

_LOG = logging.getLogger("ditquant")
_SECONDS_BETWEEN_LINES = 15.0


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextmanager
def ticking(label: str, total: int, done: int = 0) -> Iterator[Callable[[], None]]:
    """Yields `tick`, to be called after each of `total` pieces of work.

    A terminal shows a bar; the log gets a line with the time left now and then, and one at the end.

    Args:
        done: pieces that an earlier, interrupted run finished.
    """
    started = last = previous = time.monotonic()
    first = done
    pieces: list[float] = []

    with tqdm(
        total=total, initial=done, desc=label, disable=not sys.stderr.isatty(), leave=False
    ) as bar:

        def tick() -> None:
            nonlocal done, last, previous
            done += 1
            bar.update()
            now = time.monotonic()
            pieces.append(now - previous)
            previous = now
            if now - last >= _SECONDS_BETWEEN_LINES and done < total:
                last = now
                left = (now - started) / (done - first) * (total - done)
                _LOG.info("%s: %d of %d, %s left", label, done, total, _clock(left))

        yield tick
    note_pieces(pieces)
    _LOG.info("%s: %d of %d in %s", label, done, total, _clock(time.monotonic() - started))


def track(items: Iterable[Item], label: str, total: int) -> Iterator[Item]:
    """Yields `items` under a progress bar; see `ticking`."""
    with ticking(label, total) as tick:
        for item in items:
            yield item
            tick()
