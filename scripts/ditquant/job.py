"""What every Snakemake job does around its work: a log file, one clear message on failure.

Snakemake redirects nothing for scripts, so the log is opened here. A `UserError` ends the job with
its message alone; anything else is a bug and leaves its traceback in the log.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import job_times
from .errors import UserError

LOG = logging.getLogger("ditquant")


def _handlers(log_path: str | None) -> list[logging.Handler]:
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if log_path:
        Path(log_path).parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(log_path, mode="w", encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    return handlers


def input_files(snakemake: Any) -> dict[str, list[str]]:
    """All files that a job reads, by their names in its rule.

    Args:
        snakemake: the object that Snakemake puts into a script.
    """
    named = snakemake.input.items()
    return {name: [files] if isinstance(files, str) else list(files) for name, files in named}


@contextmanager
def job(snakemake: Any) -> Iterator[None]:
    """Runs a script's work: `with job(snakemake): main(...)`.

    Args:
        snakemake: the object that Snakemake puts into a script (its `rule` and `log` are used).
    """
    handlers = _handlers(snakemake.log[0] if snakemake.log else None)
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    for handler in handlers:
        LOG.addHandler(handler)
    age, began = job_times.process_age(), time.monotonic()
    # A job that computes nothing with MLX has not imported it.
    backend = sys.modules.get("ditquant.backend")
    try:
        if backend is not None:
            LOG.info("%s", backend.describe_device())
        yield
        parts = job_times.split(age, time.monotonic() - began)
        peak = None if backend is None else backend.highest_memory_bytes()
        LOG.info("%s done in %s", snakemake.rule, job_times.describe(parts, peak))
    except UserError as error:
        LOG.error("Error in %s: %s", snakemake.rule, error)
        sys.exit(1)
    except KeyboardInterrupt:
        LOG.error("%s was interrupted; the same command goes on from here", snakemake.rule)
        sys.exit(130)
    except Exception as error:
        advice = None if backend is None else backend.compile_advice(error)
        if advice is None:
            LOG.exception("%s failed", snakemake.rule)
        else:
            LOG.error("Error in %s: %s", snakemake.rule, advice)
        sys.exit(1)
    finally:
        for handler in handlers:
            LOG.removeHandler(handler)
            handler.close()
