"""Seconds that imports cost each kind of job, in fresh processes.

    .venv/bin/python benchmarks/import_time.py [--json benchmarks/results/import_time.json]

For every script of the workflow its import statements alone are run; the rows `kind: ...` show what
the kinds of job pay for their libraries. The interpreter's own start is taken off. The aim is 1.5 s
where no text encoder is needed.
"""

from __future__ import annotations

import argparse
import ast
import os
import subprocess
import sys
import time
from fnmatch import fnmatchcase
from pathlib import Path

from records import ROOT, machine, save_section

SCRIPTS = ROOT / "scripts"
DIFFUSIONKIT = "from ditquant.backend import import_diffusionkit; import_diffusionkit()"
KINDS = {
    "kind: mlx": DIFFUSIONKIT,
    "kind: text": f"{DIFFUSIONKIT}\nimport sentencepiece",
    "kind: plots": "import jinja2, matplotlib.pyplot, PIL.Image\nfrom ditquant.backend import mx",
}


def import_statements(script: Path) -> str:
    """The import statements at the top level of a script."""
    tree = ast.parse(script.read_text("utf-8"))
    return "\n".join(
        ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)
    )


def seconds(code: str, repeat: int) -> float:
    """Shortest wall time of a fresh interpreter that runs `code`."""
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS)}
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, env=environment)
        times.append(time.perf_counter() - start)
    return min(times)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3, help="runs of each; the shortest counts")
    parser.add_argument("--only", default="*", help="pattern of rows to measure")
    parser.add_argument("--json", type=Path, help="the record")
    options = parser.parse_args(arguments)
    codes = {**KINDS, **{path.name: import_statements(path) for path in SCRIPTS.glob("*.py")}}
    start = seconds("pass", options.repeat)
    rows = {}
    for name, code in codes.items():
        if fnmatchcase(name, options.only):
            rows[name] = {"seconds": round(seconds(code, options.repeat) - start, 2)}
            print(f"{rows[name]['seconds']:6.2f} s  {name}", flush=True)
    if options.json:
        command = "benchmarks/import_time.py"
        save_section(options.json, "scripts", rows, command=command, machine=machine())


if __name__ == "__main__":
    main()
