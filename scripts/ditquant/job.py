"""What every Snakemake job does around its work: a log file, one clear message on failure.

Snakemake redirects nothing for scripts, so the log is opened here. A `UserError` ends the job with
its message alone; anything else is a bug and leaves its traceback in the log.

A script is a function `main` that takes keywords, and ends with `run_script(main, globals())`.
"""

from __future__ import annotations

import inspect
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_type_hints

from . import job_times
from .errors import UserError
from .provenance import check_inputs, making
from .records import write_record

LOG = logging.getLogger("ditquant")


def _handlers(log_path: str | None) -> list[logging.Handler]:
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if log_path:
        Path(log_path).parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(log_path, mode="w", encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    return handlers


_SECTIONS = ("input", "output", "params", "wildcards")


def _named(snakemake: Any, section: str) -> dict[str, Any]:
    """Of a section of a rule: files that belong together are a list."""
    return {
        name: list(value) if isinstance(value, list) else value
        for name, value in getattr(snakemake, section).items()
    }


def arguments(
    main: Callable[..., None], snakemake: Any, chosen: Mapping[str, str]
) -> dict[str, Any]:
    """The keywords that `run_script` calls `main` with.

    Raises:
        TypeError: a keyword without a default that the rule does not have, or has twice.
    """
    sections = {section: _named(snakemake, section) for section in _SECTIONS}
    hints, found = get_type_hints(main), {}
    for keyword, parameter in inspect.signature(main).parameters.items():
        section, _, name = chosen.get(keyword, f".{keyword}").partition(".")
        if not name:
            found[keyword] = {
                name: [value] if section == "input" and isinstance(value, str) else value
                for name, value in sections[section].items()
            }
            continue
        places = [one for one in ([section] if section else _SECTIONS) if name in sections[one]]
        if len(places) > 1:
            raise TypeError(f"rule {snakemake.rule} has {name} in {' and '.join(places)}")
        if places:
            value = sections[places[0]][name]
            make = getattr(hints[keyword], "from_params", None)
            found[keyword] = value if make is None else make(value)
        elif parameter.default is parameter.empty:
            raise TypeError(f"rule {snakemake.rule} has no {name}")
    return found


def run_script(main: Callable[..., None], script: Mapping[str, Any], **chosen: str) -> None:
    """Calls a script's `main` for the job that Snakemake runs it for; does nothing elsewhere.

    Args:
        main: each of its keywords is what the rule calls so among its inputs, outputs, parameters
            and wildcards; what the rule does not have keeps its default. Where the type of a
            keyword has a function `from_params`, that makes the value from the rule's.
        script: `globals()`, in which Snakemake puts its object.
        chosen: keyword -> place in the rule, for those of another or an ambiguous name:
            `config="output.config"`; `files="input"` is all inputs by name.
    """
    if "snakemake" in script:
        snakemake = script["snakemake"]
        with job(snakemake):
            main(**arguments(main, snakemake, chosen))


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
        params = dict(snakemake.params.items())
        check_inputs(snakemake.input, params.get("model"))
        with making(snakemake.rule, params, snakemake.input):
            yield
        write_record(snakemake.rule, snakemake.params, snakemake.input, snakemake.output)
        parts = job_times.split(age, time.monotonic() - began)
        peak = None if backend is None else backend.highest_memory_bytes()
        LOG.info("%s done in %s", snakemake.rule, job_times.describe(parts, peak))
    except UserError as error:
        LOG.error("Error in %s: %s", snakemake.rule, error)
        sys.exit(1)
    except KeyboardInterrupt:
        LOG.error("%s was interrupted; the same command continues from here", snakemake.rule)
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
