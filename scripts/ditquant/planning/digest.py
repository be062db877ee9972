"""A digest of the code that a job's result depends on.

Snakemake notices a changed script, but not a changed module of a package. A rule therefore carries
the digest of its script and of every module of this repository that the script imports, directly
or not.
What cannot change a result is left out: comments, docstrings and layout (the syntax tree is
digested, not the text), and the modules around the work (logging, progress, messages).
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGES = ("ditquant", "demo_model")
# Changing these changes what a user reads while a job runs, never what the job makes.
_PLUMBING = frozenset(
    {"job", "job_times", "progress", "errors", "digest", "settings", "compile_cache"}
)


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """The module and every statement in it: all that can import or begin with a docstring."""
    queue: list[ast.AST] = [tree]
    while queue:
        node = queue.pop()
        yield node
        for name in ("body", "orelse", "finalbody", "handlers", "cases"):
            inner = getattr(node, name, None)
            queue += inner if isinstance(inner, list) else []


def _imported(node: ast.Import | ast.ImportFrom, own: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Modules that a statement may import, each as its parts; relative ones are made absolute."""
    if isinstance(node, ast.Import):
        yield from (tuple(alias.name.split(".")) for alias in node.names)
        return
    start = own[: len(own) - node.level] if node.level else ()
    base = (*start, *(node.module.split(".") if node.module else ()))
    yield base
    yield from ((*base, alias.name) for alias in node.names)


@cache
def _module_file(folder: Path, parts: tuple[str, ...]) -> Path | None:
    """File of a module of one of the packages in a folder, or None if there is none."""
    if len(parts) < 2 or parts[0] not in PACKAGES:
        return None
    base = folder.joinpath(*parts)
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


@cache
def _parsed(folder: Path, path: Path) -> tuple[bytes, list[Path]]:
    """Digest of a module's syntax tree without docstrings, and the library files it imports."""
    tree = ast.parse(path.read_text("utf-8"))
    own, files = path.relative_to(folder).with_suffix("").parts, dict[Path, None]()
    for node in _statements(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found = (_module_file(folder, parts) for parts in _imported(node, own))
            files.update(dict.fromkeys(file for file in found if file))
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:] or [ast.Pass()]
    return hashlib.sha256(ast.dump(tree).encode()).digest(), list(files)


def code_files(script: Path, without: tuple[str, ...] = ()) -> list[Path]:
    """The script and the library files it depends on, sorted.

    Args:
        without: modules that this use of the script does not run ("simulate"); what only they
            import is left out with them.
    """
    left_out = _PLUMBING.union(without)
    found, queue = {script}, [script]
    while queue:
        for file in _parsed(script.parent, queue.pop())[1]:
            if file not in found and file.stem not in left_out:
                found.add(file)
                queue.append(file)
    return sorted(found)


@cache
def code_digest(script: Path, without: tuple[str, ...] = ()) -> str:
    """16 hexadecimal digits that change when the code behind a script changes; see `code_files`."""
    digest = hashlib.sha256()
    for path in code_files(script, without):
        digest.update(path.name.encode())
        digest.update(_parsed(script.parent, path)[0])
    return digest.hexdigest()[:16]
