"""What an artifact was made from, and by which options, as the artifact itself tells.

While a job runs (`making`), everything that it writes carries its rule, its options and the digests
of what it read. So results need no configuration to describe them, and `check_inputs` finds what
lies in the place of something else: an evaluation of another checkpoint than the one that is there,
blocks from other images' streams, statistics of another model.

Two kinds of files are no sources: a shard of prompts may grow, which leaves its rows alone, and
times are others in each run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from .errors import UserError
from .seals import (
    SEALED,
    annotated,
    check_file,
    check_place,
    checked_json,
    damaged,
    header_bytes,
    missing,
    place_of,
    recorded_digest,
    sealed_kind,
)

KEY = "made_by"
_NO_SOURCES = ("conditioning/", "benchmarks/")
# Parameters that decide nothing about a result, or say where on a machine something lies.
_NO_OPTIONS = frozenset({"code", "templates", "shards", "checkpoint", "checkpoints", "target"})
_NOTE = re.compile(rb"ditquant\.made_by (\{[^\0]*?\}) end")

Made = dict[str, Any]
_current: ContextVar[Made | None] = ContextVar("made_by", default=None)


def _is_source(path: str | Path) -> bool:
    """Whether a job's input is an artifact of a run that its results depend on."""
    place = place_of(path)
    return bool(place) and not place.startswith(_NO_SOURCES) and Path(path).suffix in SEALED


def _options(params: Mapping[str, Any]) -> dict[str, Any]:
    options = {key: value for key, value in params.items() if key not in _NO_OPTIONS}
    if isinstance(options.get("model"), Mapping):
        options["model"] = _options(options["model"])
    return options


@contextmanager
def making(rule: str, params: Mapping[str, Any], inputs: Iterable[str | Path]) -> Iterator[None]:
    """Within the context all artifacts that are written say that they were made like this.

    Args:
        rule, params: of the job; what JSON cannot hold is no option.
        inputs: the files that it reads.
    """
    read = {place_of(path): recorded_digest(path) for path in inputs if _is_source(path)}
    made = {"rule": rule, "options": _options(params), "sources": dict(sorted(read.items()))}
    token = _current.set(made)
    try:
        yield
    finally:
        _current.reset(token)


def current() -> Made | None:
    """What the artifacts written now are made by; None outside of `making`."""
    return _current.get()


def with_note(data: bytes, suffix: str) -> bytes:
    """A picture that names its sources, in a comment that programs pass over."""
    made = current()
    if made is None:
        return data
    note = {key: made[key] for key in ("rule", "sources")}
    return annotated(data, suffix, f"ditquant.{KEY} {json.dumps(note, separators=(',', ':'))} end")


def made_by(path: str | Path) -> Made:
    """What an artifact says of how it was made: "rule", "options" (not of pictures), "sources".

    Of tensors only the header is read and checked.

    Raises:
        UserError: it is missing, damaged or in the wrong place, or says nothing.
    """
    path = Path(path)
    if not path.is_file():
        raise missing(path)
    try:
        if path.suffix == ".safetensors":
            seal = checked_json(path, header_bytes(path).rstrip(b" "))["__metadata__"]
            check_place(path, seal["file"])
            found = json.loads(seal[KEY])
        elif path.suffix == ".json":
            document = checked_json(path, path.read_bytes())
            check_place(path, document.get("file", ""))
            found = document[KEY]
        else:
            data = path.read_bytes()
            check_file(path, data, sealed_kind(path, data))
            found = json.loads(_NOTE.findall(data)[-1])
        return {"rule": found["rule"], "options": {}, **found, "sources": dict(found["sources"])}
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise damaged(path, "it does not say what it was made from") from error


def _differences(one: Any, other: Any, key: str) -> list[str]:
    """Keys that are not the same in two options, with both values."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        keys = dict.fromkeys((*one, *other))
        return [
            line for name in keys
            for line in _differences(one.get(name), other.get(name), f"{key}.{name}")
        ]  # fmt: skip
    return [] if one == other else [f"{key} is {_short(one)} and not {_short(other)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _told_options(path: str | Path) -> dict[str, Any] | None:
    try:
        options: dict[str, Any] = made_by(path)["options"]
    except UserError:
        return None
    return options


def check_options(path: str | Path, meant: str, **options: Any) -> None:
    """Checks that an artifact was made by these options; others are not looked at.

    What was written outside of jobs tells no options and passes. No job takes it: `check_inputs`.

    Args:
        meant: what the options are of, for the message: "the configuration".

    Raises:
        UserError: naming the options that differ.
    """
    found = _told_options(path)
    if found is None:
        return
    lines = [
        line for key, value in options.items() for line in _differences(found.get(key), value, key)
    ]
    if lines:
        raise UserError(
            f"{path} does not belong to {meant}: {'; '.join(lines[:5])}: delete it and run the "
            "same command again."
        )


def check_alike(paths: Sequence[str | Path], *keys: str) -> None:
    """Checks that artifacts were made by the same options, as far as `keys` go.

    Raises:
        UserError: naming two of them and what differs.
    """
    first = (_told_options(paths[0]) if paths else None) or {}
    for path in paths[1:]:
        check_options(path, str(paths[0]), **{key: first[key] for key in keys if key in first})


def check_inputs(inputs: Iterable[str | Path], model: Mapping[str, Any] | None) -> None:
    """Checks that what a job reads is of one piece, see `Lineage`.

    Args:
        model: of the job's parameters, if it has one.
    """
    lineage: Lineage | None = None
    for path in filter(_is_source, inputs):
        lineage = lineage or Lineage(str(path).removesuffix(place_of(path)), model)
        lineage.check(path)


class Lineage:
    """Looks at artifacts of one run, at what they were made from, and so on.

    Args:
        results: the run's folder.
        model: options of the model that is meant; None: that of the first artifact that has one.

    Attributes:
        model: see above; None as long as no artifact has one.
    """

    def __init__(self, results: str | Path, model: Mapping[str, Any] | None = None):
        self.results = Path(results)
        self.model = dict(_options(model)) if model else None
        self._model_of = "the configuration"
        self._seen: dict[str, Made] = {}

    def check(self, path: str | Path) -> Made:
        """What made a file, after it and all that it was made from were found to be of one piece.

        Sources that are no longer there are passed over.

        Raises:
            UserError: naming two files that do not belong together.
        """
        place = place_of(path) or str(path)
        if place not in self._seen:
            made = self._seen[place] = made_by(path)
            self._check_model(path, made)
            for source, digest in made["sources"].items():
                file = self.results / source
                if not file.is_file():
                    continue
                if recorded_digest(file) != digest:
                    raise UserError(
                        f"{path} was made from another {file} than the one that is there: delete "
                        "it and run the same command again, or put back what it was made from."
                    )
                self.check(file)
        return self._seen[place]

    def _check_model(self, path: str | Path, made: Made) -> None:
        model = made["options"].get("model")
        if self.model is None:
            self.model, self._model_of = model, str(path)
        elif model:
            check_options(path, self._model_of, model=self.model)
