"""Says in one line each what a configuration does that its schema does not allow.

Snakemake's own message prints the schema and the whole configuration around the fault.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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


def _path(parts: Iterable[str | int]) -> str:
    return ".".join(str(part) for part in parts)


def _explain(error: ValidationError) -> list[str]:
    where = _path(error.absolute_path)
    value, rule = error.instance, error.validator
    if rule == "additionalProperties" and isinstance(value, Mapping):
        known = list(error.schema.get("properties", {}))
        lines = []
        for key in value:
            if key in known:
                continue
            close = get_close_matches(str(key), known, n=1)
            advice = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}."
            lines.append(f"{_path([*error.absolute_path, key])}: unknown key; {advice}")
        return lines
    if rule == "type":
        names = error.validator_value
        names = [names] if isinstance(names, str) else names
        wanted = " or ".join(_TYPES[name] for name in names)
        return [f"{where}: {value!r} is not {wanted}."]
    if rule == "enum":
        return [f"{where}: {value!r} is none of {', '.join(map(str, error.validator_value))}."]
    if rule == "required":
        return [f"{where}: {error.message.replace(' is a required property', ' is missing')}."]
    return [f"{where}: {error.message}."]


def check_schema(config: Mapping[str, Any], schema: Mapping[str, Any]) -> None:
    """Checks a configuration, before defaults are filled in.

    Raises:
        UserError: with one line for each fault: the key's full path, and what would be right.
    """
    faults = sorted(Draft202012Validator(schema).iter_errors(config), key=lambda e: str(e.path))
    lines = [line for fault in faults for line in _explain(fault)]
    if lines:
        raise UserError("The configuration has faults.\n  " + "\n  ".join(lines))
