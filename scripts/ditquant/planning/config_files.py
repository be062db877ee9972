"""Finds mistakes in configuration files that YAML accepts silently.

    python -m ditquant.planning.config_files my.yaml

`make run` asks this before it starts Snakemake, which reads `--configfile` before the workflow can.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from ..errors import UserError
from .prompt_files import read_text
from .validation import MOST_VALUES

_MERGE = "tag:yaml.org,2002:merge"
_OLD_NUMBER = re.compile(r"[-+]?0[0-9_]+|.*:.*")
# Keys whose plain text is a prompt: what YAML cuts off there may be part of it.
_PROMPTS = {"prompt", "prompts", "negative_prompt"}


def check_file(path: str | Path) -> None:
    """Checks a configuration file in YAML or JSON; its keys are checked when all files are joined.

    Raises:
        UserError: no such file, not UTF-8, not YAML, no keys at the top, a key that stands twice,
            aliases that stand for endlessly much, or a comment behind a prompt without quotes.
    """
    path = Path(path)
    text = read_text(path, "Configuration")
    where = f"Configuration: {path}"
    try:
        document = json.loads(text, object_pairs_hook=lambda pairs: _unique(pairs, where))
    except (ValueError, RecursionError):
        pass  # YAML then
    else:
        if not isinstance(document, dict):
            raise UserError(f"{where} has no keys at the top.")
        return
    try:
        loader = yaml.FullLoader(text)  # the one that Snakemake takes
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise UserError(f"{where}{_line(error.problem_mark)}: {_problem(error)}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"{where}, line {line}: {error.reason}.") from None
    except RecursionError:
        raise UserError(f"{where}: too many lists or groups inside each other.") from None
    if root is None:
        raise UserError(f"{where} is empty: write `key: value` lines, or leave the file out.")
    if not isinstance(root, MappingNode):
        raise UserError(f"{where} has no keys at the top: it must hold `key: value` lines.")
    lines = text.splitlines()
    _check_size(root, where)
    for node in _nodes(root):
        try:
            if isinstance(node, ScalarNode) and node.tag != _MERGE:
                _check_scalar(node, loader.construct_object(node), where)
            elif isinstance(node, MappingNode):
                _check_names(node, where, lines)
        except (yaml.YAMLError, ValueError) as error:
            what = getattr(error, "problem", None) or error
            raise UserError(f"{where}{_line(node.start_mark)}: {what}.") from None


def _line(mark: Any) -> str:
    return f", line {mark.line + 1}" if mark is not None else ""


def _problem(error: yaml.MarkedYAMLError) -> str:
    problem = f"{error.problem}"
    if "\\t" in problem:
        return "a tab, where YAML wants spaces."
    if "mapping values are not allowed" in problem:
        return "a colon inside text without quotes, or a line that is indented too far."
    return f"not YAML: {problem}" + (f" {error.context}." if error.context else ".")


def _unique(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise UserError(f"{where}: {name!r} appears twice in one group; keep one of them.")
        found[name] = value
    return found


def _children(node: Node) -> list[Node]:
    if isinstance(node, MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, SequenceNode) else []


def _nodes(root: Node) -> Iterator[Node]:
    """Every node once, however often aliases stand for it."""
    seen, stack = {id(root)}, [root]
    while stack:
        node = stack.pop()
        yield node
        for child in _children(node):
            if id(child) not in seen:
                seen.add(id(child))
                stack.append(child)


def _check_size(root: Node, where: str) -> None:
    """Counts values, each use of an alias in full; linear in the file."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()
    stack = [(root, False)]
    while stack:
        node, done = stack.pop()
        if done:
            open_nodes.discard(id(node))
            sizes[id(node)] = 1 + sum(sizes[id(child)] for child in _children(node))
            if sizes[id(node)] > MOST_VALUES:
                raise UserError(
                    f"{where}{_line(node.start_mark)}: more than {MOST_VALUES:,} values, each use "
                    "of an alias (*name) counted: no configuration is as large."
                )
            continue
        if id(node) in sizes:
            continue
        if id(node) in open_nodes:
            raise UserError(f"{where}{_line(node.start_mark)}: an alias inside what it stands for.")
        open_nodes.add(id(node))
        stack.append((node, True))
        stack += [(child, False) for child in _children(node)]


def _check_scalar(node: ScalarNode, value: Any, where: str) -> None:
    """Refuses numbers that YAML 1.1 reads otherwise than people do: 010 is 8, and 1:30 is 90."""
    if isinstance(value, int | float) and _OLD_NUMBER.fullmatch(node.value):
        raise UserError(
            f"{where}{_line(node.start_mark)}: YAML reads {node.value} as {value}. Write the "
            "number without leading zeros and colons, or put text into quotes."
        )


def _check_names(group: MappingNode, where: str, lines: list[str]) -> None:
    first: dict[str, int] = {}
    for name, value in group.value:
        line = name.start_mark.line + 1
        if not isinstance(name, ScalarNode):
            raise UserError(f"{where}, line {line}: a list or a group is in the place of a name.")
        if name.tag == _MERGE:
            parts = value.value if isinstance(value, SequenceNode) else [value]
            if not all(isinstance(part, MappingNode) for part in parts):
                raise UserError(f"{where}, line {line}: << needs an alias of a group: *name.")
        else:
            if name.value in first:
                raise UserError(
                    f"{where}, line {line}: {name.value!r} appears a second time (first in line "
                    f"{first[name.value]}); keep one of them."
                )
            first[name.value] = line
        if name.value in _PROMPTS:
            for prompt in value.value if isinstance(value, SequenceNode) else [value]:
                _check_prompt(prompt, where, lines)


def _check_prompt(node: Node, where: str, lines: list[str]) -> None:
    """Refuses a comment behind a prompt without quotes: it may be meant as the prompt's end."""
    if not isinstance(node, ScalarNode) or node.style is not None or not node.value:
        return
    rest = lines[node.end_mark.line][node.end_mark.column :]
    if rest.lstrip().startswith("#"):
        raise UserError(
            f"{where}{_line(node.end_mark)}: YAML takes what follows # for a comment and cuts the "
            "prompt there. Put the prompt into quotes, with or without that part."
        )


def main(paths: Iterable[str]) -> int:
    """Checks files; prints the first fault and returns 2 where there is one."""
    try:
        for path in paths:
            check_file(path)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
