"""The folders of the library are in an order: modules import from their own and earlier ones."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parents[2] / "scripts" / "ditquant"
# What several folders use lies in the library's own, which comes first.
FOLDERS = [
    "", "planning", "backend", "models", "network", "activations", "weights",
    "checkpoints", "evaluation", "plots", "report",
]  # fmt: skip
# Beside the portable code that they equal: used by it, and use its types.
KERNELS = {"", "backend", "activations", "weights", "kernels/cuda"}
MODULES = sorted(LIBRARY.rglob("*.py"))


def folder_of(path: Path) -> str:
    return "/".join(path.relative_to(LIBRARY).parts[:-1])


def imported_folders(path: Path) -> set[str]:
    """Folders whose modules a module imports from."""
    own = path.relative_to(LIBRARY).parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        parts = [*own[: len(own) - node.level + 1], *(node.module or "").split(".")]
        named = LIBRARY.joinpath(*filter(None, parts))
        found.add(folder_of(named / "x") if named.is_dir() else folder_of(named))
    return found


def test_every_folder_has_a_place():
    assert {folder_of(path) for path in MODULES} == {*FOLDERS, "kernels", "kernels/cuda"}


def allowed_folders(folder: str) -> set[str]:
    if folder in ("kernels", "kernels/cuda"):
        return KERNELS
    allowed = {*FOLDERS[: FOLDERS.index(folder) + 1]}
    if folder in ("activations", "weights", "checkpoints"):
        allowed |= {"kernels/cuda"}
    if folder == "planning":
        # Schemes hold no arrays.
        allowed |= {"activations"}
    # Reading and writing files takes MLX's arrays, from the backend.
    return allowed | {"backend"} if folder == "" else allowed


def test_nothing_later_is_imported():
    up = {
        str(path.relative_to(LIBRARY)): wrong
        for path in MODULES
        if (wrong := imported_folders(path) - allowed_folders(folder_of(path)))
    }
    assert len(MODULES) > 100
    assert not up


@pytest.mark.parametrize("folder", [*FOLDERS[1:], "kernels/cuda"])
def test_a_folder_lists_its_modules(folder):
    listed = ast.get_docstring(ast.parse((LIBRARY / folder / "__init__.py").read_text("utf-8")))
    modules = {path.stem for path in (LIBRARY / folder).glob("*.py")} - {"__init__"}
    beginnings = tuple(word[:-1] for word in listed.replace(",", "").split() if word[-1] == "*")
    others = {module for module in modules if not (beginnings and module.startswith(beginnings))}
    assert all(module in listed for module in others)


def test_the_library_does_not_know_the_demo_model():
    importing = {
        str(path.relative_to(LIBRARY))
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
        if name.split(".")[0] == "demo_model"
    }
    assert importing == set()
