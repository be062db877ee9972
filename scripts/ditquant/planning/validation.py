"""Reports each mistake of a configuration in one line.

Snakemake's own message would print the schema and the whole configuration.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from ..errors import UserError

_TYPES = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "string": "text",
    "array": "a list",
    "object": "a group of keys",
    "null": "null",
}
# Of one configuration, each use of an alias counted; the largest that is shipped has 500 and 5.
MOST_VALUES = 20_000
_DEEPEST = 20
_LONGEST_SHOWN = 80


def _path(parts: Iterable[Any]) -> str:
    return ".".join(str(part) for part in parts)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + " ..."


def _shown(value: Any) -> str:
    """A value as YAML has it, in at most a line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + _short(", ".join(f"{key}: ..." for key in list(value)[:5])) + "}"
    return _short(repr(value))


def _number_of(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _type_advice(value: Any, wanted: list[str]) -> str:
    if isinstance(value, str) and {"integer", "number"} & set(wanted) and _number_of(value):
        return (
            " It is text here: write plain digits (1000, not 1e3; 0.001, not 1e-3), and what is "
            "nested into a configuration file, since --config makes text of it."
        )
    if value is None:
        return " Leave the key out to keep its default."
    if "string" in wanted and isinstance(value, Mapping | list):
        return " YAML gives a colon, brackets and braces a meaning: put the text into quotes."
    return " Put it into quotes." if "string" in wanted else ""


def _explain(error: ValidationError) -> list[str]:
    where = _path(error.absolute_path)
    value, rule, limit = error.instance, error.validator, error.validator_value
    if rule == "additionalProperties" and isinstance(value, Mapping):
        known = list(error.schema.get("properties", {}))
        lines = []
        for key in value:
            if key in known:
                continue
            close = get_close_matches(str(key), known, n=1)
            advice = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}."
            name = _path([*error.absolute_path, _short(key)])
            lines.append(f"{name}: unknown key; {advice}")
        return lines
    if rule == "type":
        names = [limit] if isinstance(limit, str) else limit
        wanted = " or ".join(_TYPES[name] for name in names)
        return [f"{where}: {_shown(value)} is not {wanted}.{_type_advice(value, names)}"]
    if rule == "enum":
        choices = ", ".join(_shown(choice).strip("'") for choice in limit)
        return [f"{where}: {_shown(value)} is none of {choices}."]
    if rule in ("pattern", "maxLength"):
        return [f"{where}: {_shown(value)} is no such name. {error.schema['description']}"]
    if rule in ("minItems", "maxItems"):
        least = "least" if rule == "minItems" else "most"
        return [f"{where}: a list of {len(value)}, where it must have at {least} {limit}."]
    if rule == "not":  # the schema has `not: {required: ...}` alone
        return [f"{where}: {' and '.join(limit['required'])} exclude each other; leave one out."]
    if rule == "required":
        return [f"{where}: {error.message.replace(' is a required property', ' is missing')}."]
    return [f"{where}: {_short(error.message)}."]


def _fault(value: Any) -> str | None:
    """What is wrong with one value, whatever key it stands under."""
    if value is None or isinstance(value, bool | Mapping | list):
        return None
    if isinstance(value, str):
        if "\0" in value:
            return "the text holds a NUL character."
        if any("\ud800" <= character <= "\udfff" for character in value):
            return "the text holds half of a surrogate pair, or bytes that are not UTF-8."
        return None
    if isinstance(value, int):
        return "the number is too large." if abs(value) >= 2**63 else None
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{value} is not a finite number."
    if isinstance(value, datetime.date):
        return f"YAML reads {value} as a date: put it into quotes."
    return f"a configuration cannot hold what YAML calls {type(value).__name__}."


def _values(config: Mapping[str, Any]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every value with its path, depth first; aliases are followed as often as they are used."""
    stack: list[tuple[tuple[Any, ...], Any]] = [((), config)]
    while stack:
        path, value = stack.pop()
        yield path, value
        if isinstance(value, Mapping):
            stack += [((*path, key), inner) for key, inner in value.items()]
        elif isinstance(value, list):
            stack += [((*path, index), inner) for index, inner in enumerate(value)]


def check_values(config: Mapping[str, Any]) -> None:
    """Checks what no schema can: that all values are finite, are text or numbers, and not endless.

    Raises:
        UserError: a name that is not text, a number that is not finite or beyond 64 bits, text
            that no file can hold, or more values than a configuration has (anchors and aliases of
            YAML can stand for billions).
    """
    for count, (path, value) in enumerate(_values(config)):
        if count >= MOST_VALUES or len(path) > _DEEPEST:
            raise UserError(
                f"{_short(_path(path[:2]))}: this has more values than a configuration may, "
                f"{MOST_VALUES:,} in {_DEEPEST} levels; do aliases (*name) repeat each other?"
            )
        fault = _fault(value)
        for name in value if isinstance(value, Mapping) else ():
            if not isinstance(name, str):
                fault = f"YAML reads the name {_shown(name)} as no text: put it into quotes."
            elif _fault(name):
                fault = f"in the name {_shown(name)} {_fault(name)}"
        if fault:
            where = _short(_path(path))
            raise UserError(f"{where}: {fault}" if where else fault)


def check_schema(config: Mapping[str, Any], schema: Mapping[str, Any]) -> None:
    """Checks a configuration, before defaults are filled in.

    Raises:
        UserError: with one line for each fault: the key's full path, and what would be right.
    """
    check_values(config)
    faults = sorted(Draft202012Validator(schema).iter_errors(config), key=lambda e: str(e.path))
    lines = [line for fault in faults for line in _explain(fault)]
    if lines:
        raise UserError("The configuration has faults.\n  " + "\n  ".join(lines))
