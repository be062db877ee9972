"""The library is a house: every folder is a floor, and an import only goes down or stays."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parents[2] / "scripts" / "ditquant"
# The lowest first; what several floors use lies in the library's own folder, below them all.
FLOORS = [
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


def test_every_folder_is_a_floor():
    assert {folder_of(path) for path in MODULES} == {*FLOORS, "kernels", "kernels/cuda"}


def allowed_folders(folder: str) -> set[str]:
    # Reading and writing files takes MLX's arrays, from the backend.
    if folder in ("kernels", "kernels/cuda"):
        return KERNELS
    allowed = {*FLOORS[: FLOORS.index(folder) + 1]}
    if folder in ("activations", "weights", "checkpoints"):
        allowed |= {"kernels/cuda"}
    if folder == "planning":
        # Schemes hold no arrays.
        allowed |= {"activations"}
    return allowed | {"backend"} if folder == "" else allowed


def test_an_import_never_goes_up():
    up = {
        str(path.relative_to(LIBRARY)): wrong
        for path in MODULES
        if (wrong := imported_folders(path) - allowed_folders(folder_of(path)))
    }
    assert len(MODULES) > 100
    assert not up


@pytest.mark.parametrize("floor", [*FLOORS[1:], "kernels/cuda"])
def test_a_floor_lists_its_rooms(floor):
    listed = ast.get_docstring(ast.parse((LIBRARY / floor / "__init__.py").read_text("utf-8")))
    rooms = {path.stem for path in (LIBRARY / floor).glob("*.py")} - {"__init__"}
    by_pattern = {room for room in rooms for word in listed.split() if
                  word.strip(",").endswith("*") and room.startswith(word.strip(",*"))}  # fmt: skip
    missing = {room for room in rooms - by_pattern if room not in listed}
    assert not missing


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
