"""Tables of the documents, made of the records; figures of the text, compared with them.

    make tables                                       renders every table again, then compares
    .venv/bin/python benchmarks/render.py --check     writes nothing; status 1 if anything differs

docs/MEASURING.md tells how tables and figures are cited. Documents are README.md, docs/*.md,
resources/demo/README.md and the pages beside the records, benchmarks/results/*.md.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from operator import sub, truediv
from pathlib import Path
from typing import Any

import yaml
from records import RESULTS, ROOT, describe, section, values

QUOTES = ROOT / "benchmarks" / "quotes.yaml"
_TABLE = re.compile(
    r"<!-- table (?P<path>\S+)(?P<only>[^\n]*)\n(?P<header>\|[^\n]*)\n(?P<row>\|[^\n]*)\n-->\n"
    r"(?P<rendered>.*?)<!-- end -->",
    re.DOTALL,
)
_CODE = re.compile(r"```.*?```", re.DOTALL)
_FIELD = re.compile(r"\{(?P<path>[^{}:]+)(?::(?P<form>[^{}]+))?\}")
# Code, formulas, comments, and the addresses of links: numbers there are no figures.
_NO_TEXT = re.compile(
    r"<!--.*?-->|```.*?```|`[^`\n]+`|\$\$.*?\$\$|\$[^$\n]+\$|(?<=\]\()[^)\n]+", re.DOTALL
)
_UNIT = r"%|dB|ms|s|seconds|minutes|hours|GB|MB|kB|times"
_FIGURE = re.compile(
    rf"(?<![\w.])(?:\d[\d,]*\.\d+(?: ?(?:{_UNIT})\b| %)?|\d[\d,]*(?: (?:{_UNIT})(?!\w)|%))"
    r"(?!\w|\.\d)"
)
_FUNCTIONS: dict[str, Callable[[list[Any]], Any]] = {
    "min": min,
    "max": max,
    "sum": sum,
    "count": len,
}


def documents() -> list[Path]:
    return [
        ROOT / "README.md",
        ROOT / "resources" / "demo" / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted(RESULTS.glob("*.md")),
    ]


# ------------------------------------------------------------------------------------- numbers


def shown(value: Any, form: str | None) -> str:
    """A value by a format of Python's; ".1f %" gives per cent of a share."""
    if form and form.endswith(" %"):
        return f"{100 * value:{form.removesuffix(' %')}} %"
    return format(value, form or "")


def number(expression: str, results: Path = RESULTS) -> Any:
    """The number of "path", "min path", "path over path" and so on; see docs/MEASURING.md.

    Raises:
        KeyError: a path leads nowhere, or to several numbers.
    """
    for word, operation in (("over", truediv), ("minus", sub)):
        if f" {word} " in expression:
            one, other = expression.split(f" {word} ")
            return operation(number(one, results), number(other, results))
    if re.fullmatch(r"[\d.]+", expression):
        return float(expression)
    name, _, path = expression.rpartition(" ")
    found = values(path, results)
    if name:
        return _FUNCTIONS[name](found)
    if len(found) > 1:
        raise KeyError(f"{expression} stands for {len(found)} numbers: say min, max, sum or count")
    return found[0]


def quote(template: str, results: Path = RESULTS) -> str:
    """The text of a quotation, with its figures out of the records."""
    return _FIELD.sub(lambda m: shown(number(m["path"], results), m["form"]), template)


# -------------------------------------------------------------------------------------- tables


def _cell(template: str, name: str, row: Mapping[str, Any]) -> str:
    """A cell; empty where a value that it shows is missing."""
    known = {"row": name, **row}
    if any(known.get(m["path"]) is None for m in _FIELD.finditer(template)):
        return ""
    return _FIELD.sub(lambda m: shown(known[m["path"]], m["form"]), template)


def table(path: str, only: Sequence[str], header: str, template: str, results: Path) -> str:
    """The table of a section; `only` are patterns of the rows to be shown (none: all).

    Raises:
        KeyError: the section is not there, or no row has a column that the template names.
    """
    found = section(path, results)
    rows = {
        name: row
        for name, row in found["rows"].items()
        if not only or any(fnmatchcase(name, pattern) for pattern in only)
    }
    known = {"row", *(key for row in rows.values() for key in row)}
    wanted = {m["path"] for m in _FIELD.finditer(template)}
    if not rows or wanted - known:
        raise KeyError(f"{path}: no rows {only}, or no columns {sorted(wanted - known)}")
    cells = [cell.strip() for cell in template.strip("| ").split("|")]
    width = len(header.strip("| ").split("|"))
    lines = [header, "|" + " --- |" * width]
    lines += [
        "| " + " | ".join(_cell(cell, name, row) for cell in cells) + " |"
        for name, row in rows.items()
    ]
    return "\n".join([*lines, "", describe(found), ""])


def _tables(text: str) -> Iterator[re.Match[str]]:
    """The tables of a document, but for examples in code."""
    return _TABLE.finditer(_CODE.sub(lambda m: " " * len(m[0]), text))


def with_tables(text: str, results: Path = RESULTS) -> str:
    """A document with all of its tables rendered again."""

    def rendered(match: re.Match[str]) -> str:
        made = table(match["path"], match["only"].split(), match["header"], match["row"], results)
        start = match[0][: match.start("rendered") - match.start()]
        return f"{start}{made}<!-- end -->"

    parts, start = [], 0
    for match in _tables(text):
        parts += [text[start : match.start()], rendered(match)]
        start = match.end()
    return "".join([*parts, text[start:]])


# ------------------------------------------------------------------------------------- figures


@dataclass
class Quoted:
    """What a document quotes: see docs/MEASURING.md.

    Attributes:
        measured: pieces of its text with the paths of figures in the place of the figures.
        given: pieces of its text whose figures were not measured here.
        tables: first header cells of tables that other tests check.
    """

    measured: list[str] = field(default_factory=list)
    given: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)


def read_quotes(path: Path = QUOTES) -> dict[str, Quoted]:
    """Document -> what it quotes."""
    entries = yaml.safe_load(path.read_text("utf-8")) or {}
    return {name: Quoted(**entry) for name, entry in entries.items()}


def figures(text: str) -> Iterator[re.Match[str]]:
    """Numbers that say how much: decimal ones, and those with a unit, outside of code."""
    return _FIGURE.finditer(_NO_TEXT.sub(lambda m: " " * len(m[0]), text))


def _spans(text: str, piece: str) -> list[tuple[int, int]]:
    return [(m.start(), m.end()) for m in re.finditer(re.escape(piece), text)]


def problems(text: str, quoted: Quoted, results: Path = RESULTS) -> list[str]:
    """What a document says that its records do not, in words; empty if nothing."""
    found = []
    try:
        if with_tables(text, results) != text:
            found.append("a table is not what its record gives: make tables")
    except (KeyError, ValueError) as error:
        found.append(f"a table cannot be rendered: {error}")
    covered = [match.span("rendered") for match in _tables(text)]
    for template in quoted.measured:
        try:
            expected = quote(template, results)
        except (KeyError, ValueError) as error:
            found.append(f"{template!r}: {error}")
            continue
        spans = _spans(text, expected)
        if expected == template:
            found.append(f"{template!r} names no record")
        if not spans:
            found.append(f"by its records it should say: {expected}")
        covered += spans
    for piece in quoted.given:
        spans = _spans(text, piece)
        if not spans:
            found.append(f"it does not say what benchmarks/quotes.yaml gives: {piece}")
        covered += spans
    for cell in quoted.tables:
        spans = [
            m.span() for m in re.finditer(rf"^\| {re.escape(cell)} \|(?:.*\n\|)*.*", text, re.M)
        ]
        if not spans:
            found.append(f"it has no table {cell!r}")
        covered += spans
    for match in figures(text):
        if not any(first <= match.start() and match.end() <= end for first, end in covered):
            line = text.count("\n", 0, match.start()) + 1
            near = text[max(0, match.start() - 50) : match.end() + 20].replace("\n", " ")
            found.append(f"line {line}: {match[0]!r} has no source (... {near} ...)")
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(arguments)
    quotes, status = read_quotes(), 0
    for path in documents():
        name, text = str(path.relative_to(ROOT)), path.read_text("utf-8")
        with suppress(KeyError, ValueError):  # `problems` tells
            if not options.check and with_tables(text) != text:
                text = with_tables(text)
                path.write_text(text, "utf-8")
                print(f"{name}: tables rendered")
        for problem in problems(text, quotes.get(name, Quoted())):
            print(f"{name}: {problem}")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
