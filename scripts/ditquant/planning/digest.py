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
from functools import cache
from pathlib import Path

PACKAGES = ("ditquant", "demo_model")
# Changing these changes what a user reads while a job runs, never what the job makes.
_PLUMBING = frozenset({"job", "job_times", "progress", "errors", "digest", "settings", "kernels"})


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:] or [ast.Pass()]
    return tree


def _module_file(scripts: Path, name: str) -> Path | None:
    """File of a dotted module name in one of the packages, or None if there is none."""
    parts = name.split(".")
    if parts[0] not in PACKAGES:
        return None
    base = scripts.joinpath(*parts)
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if len(parts) > 1 and candidate.is_file():
            return candidate
    return None


@cache
def _imports(path: Path, module: str) -> frozenset[str]:
    """Dotted names that a module may import; relative ones are made absolute."""
    names: set[str] = set()
    is_package = path.name == "__init__.py"
    for node in ast.walk(_parsed(path)[1]):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                kept = module.split(".")
                kept = kept[: len(kept) - node.level + (1 if is_package else 0)]
                base = ".".join([*kept, base] if base else kept)
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return frozenset(names)


@cache
def _parsed(path: Path) -> tuple[str, ast.Module]:
    tree = ast.parse(path.read_text("utf-8"))
    return ast.dump(_without_docstrings(tree)), tree


def code_files(script: Path, without: tuple[str, ...] = ()) -> list[Path]:
    """The script and the library files it depends on, sorted.

    Args:
        without: modules that this use of the script does not run ("simulate"); what only they
            import is left out with them.
    """
    found: dict[Path, None] = {script: None}
    queue = [(script, script.stem)]
    while queue:
        path, module = queue.pop()
        for name in _imports(path, module):
            file = _module_file(script.parent, name)
            if file is None or file in found or file.stem in _PLUMBING.union(without):
                continue
            found[file] = None
            queue.append((file, name))
    return sorted(found)


@cache
def code_digest(script: Path, without: tuple[str, ...] = ()) -> str:
    """16 hexadecimal digits that change when the code behind a script changes; see `code_files`."""
    digest = hashlib.sha256()
    for path in code_files(Path(script), without):
        digest.update(path.name.encode())
        digest.update(_parsed(path)[0].encode())
    return digest.hexdigest()[:16]
