"""A digest of the code that a job's result depends on.

Snakemake notices a changed script, but not a changed module of a package. A rule therefore carries
the digest of its script and of every module of this repository that the script imports, directly
or not, with the files that lie in folders of no modules beside them (templates).
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
_PLUMBING = (
    "ditquant.job", "ditquant.job_times", "ditquant.progress", "ditquant.errors",
    "planning.digest", "backend.compile_cache",
)  # fmt: skip


@cache
def _modules(folder: Path) -> dict[str, Path]:
    """Dotted name -> file, of all modules of the packages in a folder."""
    files = [file for package in PACKAGES for file in (folder / package).rglob("*.py")]
    names = (".".join(file.relative_to(folder).with_suffix("").parts) for file in files)
    found = dict(zip((name.removesuffix(".__init__") for name in names), files, strict=True))
    # A package's own __init__ holds the version, and nothing that computes.
    return {name: file for name, file in found.items() if name not in PACKAGES}


def _named(folder: Path, name: str) -> Path:
    """The file of the module with a dotted name, of which the beginning may be left out.

    Raises:
        ValueError: there is no such module, or more than one.
    """
    found = [file for module, file in _modules(folder).items() if f".{module}".endswith(f".{name}")]
    if len(found) != 1:
        raise ValueError(f"{len(found)} modules of {folder} are called {name}, not one")
    return found[0]


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """The module and every statement in it: all that can import or begin with a docstring."""
    queue: list[ast.AST] = [tree]
    while queue:
        node = queue.pop()
        yield node
        for name in ("body", "orelse", "finalbody", "handlers", "cases"):
            inner = getattr(node, name, None)
            queue += inner if isinstance(inner, list) else []


def _imported(node: ast.Import | ast.ImportFrom, own: tuple[str, ...]) -> Iterator[str]:
    """Modules that a statement may import; relative names are made absolute."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    start = own[: len(own) - node.level] if node.level else ()
    base = ".".join([*start, *([node.module] if node.module else [])])
    yield base
    yield from (f"{base}.{alias.name}" for alias in node.names)


@cache
def _parsed(folder: Path, path: Path) -> tuple[bytes, list[Path]]:
    """Digest of a file, and the library's files that it needs.

    Of a module that is the digest of its syntax tree without docstrings.
    """
    if path.suffix != ".py":
        return hashlib.sha256(path.read_bytes()).digest(), []
    tree = ast.parse(path.read_text("utf-8"))
    own, modules = path.relative_to(folder).with_suffix("").parts, _modules(folder)
    files: set[Path] = set()
    for node in _statements(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            files.update(modules[name] for name in _imported(node, own) if name in modules)
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:] or [ast.Pass()]
    if path.parent != folder:
        files.update(_data_beside(path.parent))
    return hashlib.sha256(ast.dump(tree).encode()).digest(), sorted(files)


def _data_beside(package: Path) -> Iterator[Path]:
    """Files in the folders of a package that hold no modules."""
    for folder in package.iterdir():
        if folder.is_dir() and folder.name != "__pycache__" and not any(folder.glob("*.py")):
            yield from (file for file in folder.rglob("*") if file.is_file())


def code_files(script: Path, without: tuple[str, ...] = ()) -> list[Path]:
    """The script and the library's files that it depends on, sorted.

    Args:
        without: modules that this use of the script does not run ("activations.simulate"); what
            only they import is left out with them.

    Raises:
        ValueError: `without` names what is no module.
    """
    folder = script.parent
    left_out = {_named(folder, name) for name in (*_PLUMBING, *without)}
    found, queue = {script}, [script]
    while queue:
        for file in _parsed(folder, queue.pop())[1]:
            if file not in found and file not in left_out:
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
