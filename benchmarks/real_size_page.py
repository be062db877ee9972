"""The page of a record that `real_size_record.py` gathered.

    .venv/bin/python benchmarks/real_size_page.py benchmarks/results/real_size.json

Writes real_size.md beside it, as `make real-size` does.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]

# Seconds of a job, as `ditquant.job_times` splits them.
PARTS = ("start", "loading", "compiling", "work")
# What the project promises of blocks at this size.
LARGEST_RATIO, LARGEST_DIFFERENCE = 0.6, 0.02


def _cell(value: float | None, digits: int, factor: float = 1.0) -> str:
    return "" if value is None else f"{value * factor:.{digits}f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def rule_lines(record: Row) -> list[str]:
    header = ["rule", "jobs", "s together", "longest", *(f"{part}, s" for part in PARTS)]
    return table(
        [*header, "host, GB", "device, GB"],
        [
            [
                row["rule"],
                str(row["jobs"]),
                _cell(row["seconds_together"], 0),
                _cell(row["longest"], 1),
                *(_cell(row[part], 1) for part in PARTS),
                _cell(row["host_bytes"], 2, 1e-9),
                _cell(row["device_bytes"], 2, 1e-9),
            ]
            for row in record["rules"]
        ],
    )


def disk_lines(record: Row) -> list[str]:
    rows = [
        [f"`{row['stage']}`", str(row["files"]), _cell(row["bytes"], 3, 1e-9)]
        for row in record["disk"]
    ]
    total = sum(row["bytes"] for row in record["disk"])
    return table(
        ["below the run's folder", "files", "GB"], [*rows, ["all", "", f"{total * 1e-9:.3f}"]]
    )


def by_dtype(rows: Sequence[Row]) -> dict[tuple[str, str], dict[str, Row]]:
    """(recipe, block) -> dtype -> row, in the order in which they were measured."""
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        found.setdefault((row["recipe"], row["block"]), {})[row["dtype"]] = row
    return found


def difference(half: Row, single: Row) -> float:
    """By how much the block's error in float16 differs from that in float32, relative."""
    return float(half["kept_error"] / single["kept_error"] - 1)


def verdicts(record: Row) -> list[Row]:
    """By recipe: blocks, the range of their ratios to rtn, and the largest difference of dtypes."""
    found = []
    pairs = by_dtype(record["blocks"]["rows"])
    for recipe in dict.fromkeys(recipe for recipe, _ in pairs):
        rows = [dtypes for (name, _), dtypes in pairs.items() if name == recipe]
        both = [d for d in rows if all("ratio" in d.get(t, {}) for t in ("float16", "float32"))]
        differences = [difference(dtypes["float16"], dtypes["float32"]) for dtypes in both]
        verdict: dict[str, Any] = {
            "recipe": recipe,
            "compared": len(both),
            "difference": max(differences, key=abs, default=None),
            "mean": statistics.mean(differences) if differences else None,
            "failed": sum("error" in row for dtypes in rows for row in dtypes.values()),
        }
        for dtype in ("float16", "float32"):
            ratios = [d[dtype]["ratio"] for d in rows if "ratio" in d.get(dtype, {})]
            verdict[dtype] = {
                "blocks": len(ratios),
                "median": statistics.median(ratios) if ratios else None,
                "largest": max(ratios, default=None),
            }
        found.append(verdict)
    return found


def verdict_lines(record: Row) -> list[str]:
    rows = []
    for verdict in verdicts(record):
        cells = [verdict["recipe"]]
        for dtype in ("float16", "float32"):
            own = verdict[dtype]
            cells += [str(own["blocks"]), _cell(own["median"], 3), _cell(own["largest"], 3)]
        worst = [_cell(verdict[name], 2, 100) for name in ("difference", "mean")]
        rows.append([*cells, *worst, str(verdict["failed"])])
    header = ["recipe"]
    for dtype in ("float16", "float32"):
        header += [f"{dtype}: blocks", "ratio to rtn, median", "largest"]
    header += ["largest difference, %", "mean, %"]
    return table([*header, "failed"], rows)


def block_lines(record: Row) -> list[str]:
    """A row a block: errors of rtn, ratios of the others to it, in both dtypes, and differences."""
    pairs = by_dtype(record["blocks"]["rows"])
    recipes = list(dict.fromkeys(recipe for recipe, _ in pairs))
    blocks = list(dict.fromkeys(block for _, block in pairs))
    rows = []
    for block in sorted(blocks):
        cells = [block]
        for recipe in recipes:
            dtypes = pairs.get((recipe, block), {})
            half, single = (dtypes.get(name, {}) for name in ("float16", "float32"))
            shown = half.get("kept_error") if recipe == "rtn" else half.get("ratio")
            other = single.get("kept_error") if recipe == "rtn" else single.get("ratio")
            both = shown is not None and other is not None
            digits = 5 if recipe == "rtn" else 3
            cells += [
                "failed" if "error" in half else _cell(shown, digits),
                "failed" if "error" in single else _cell(other, digits),
                _cell(difference(half, single), 2, 100) if both else "",
            ]
        rows.append(cells)
    header = ["block"]
    for recipe in recipes:
        header += [f"{recipe}, float16", "float32", "difference, %"]
    return table(header, rows)


def seed_lines(record: Row) -> list[str]:
    """How far the error of a learned block goes with the seed, in one dtype."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for row in [*record["blocks"].get("seeds", ()), *record["blocks"]["rows"]]:
        place = (row["recipe"], row["block"], row["dtype"])
        found.setdefault(place, []).append(row["kept_error"])
    spreads = [
        f"{block} by {recipe} in {dtype} {100 * (max(errors) / min(errors) - 1):.1f} %"
        for (recipe, block, dtype), errors in found.items()
        if len(errors) > 1
    ]
    if not spreads:
        return []
    return ["", f"From seed to seed, largest over smallest: {', '.join(spreads)}."]


def promise_lines(record: Row) -> list[str]:
    """What was promised, and whether it was kept."""
    lines = [
        f"* The run ended {'with its report' if record['report'] else '**without a report**'}."
    ]
    lines.append(f"* Exports: {', '.join(record['exports']) or '**none**'}.")
    for verdict in verdicts(record):
        largest = verdict["float16"]["largest"]
        if verdict["recipe"] == "adaround" and largest is not None:
            kept = "kept" if largest <= LARGEST_RATIO else "**missed**"
            lines.append(
                f"* `adaround` at most {LARGEST_RATIO} x `rtn` on every block, float16: {kept} "
                f"({largest:.3f} at most, {verdict['float16']['blocks']} blocks)."
            )
        worst = verdict["difference"]
        if worst is not None:
            kept = "kept" if abs(worst) <= LARGEST_DIFFERENCE else "**missed**"
            lines.append(
                f"* `{verdict['recipe']}`, float16 within {100 * LARGEST_DIFFERENCE:.0f} % of "
                f"float32: {kept} ({100 * worst:+.2f} % at most, {100 * verdict['mean']:+.2f} % on "
                f"average, {verdict['compared']} blocks)."
            )
    return lines


def learned_lines(record: Row) -> list[str]:
    """One line a recipe that the run itself learned."""
    lines = []
    for recipe in dict.fromkeys(row["recipe"] for row in record["learned"]):
        rows = [row for row in record["learned"] if row["recipe"] == recipe]
        ratios = [row["ratio"] for row in rows]
        share = min(row["binary_share"] or 0.0 for row in rows)
        diverged = sum(row.get("diverged", False) for row in rows)
        kept = sum(row["kept"] == "rtn" and not row.get("diverged") for row in rows)
        astray = f"{diverged} diverged; " if diverged else ""
        lines.append(
            f"* Blocks of `{recipe}` in the run: {len(rows)}, ratio to rtn {min(ratios):.3f} to "
            f"{max(ratios):.3f}; {kept} kept rtn; {astray}at least {100 * share:.1f} % of the "
            "roundings decided."
        )
    return lines


def render(record: Row) -> str:
    """The page of a record."""
    run, blocks = record["run"], record["blocks"]
    products = "rounded to ten bits (TF32)" if blocks["tf32"] else "in full float32"
    lines = [
        "# The whole workflow at the size of Stable Diffusion 3 medium",
        "",
        "`make real-size` (`benchmarks/real_size.py`): a random model in the published file, with "
        "loud channels; `config/sd3-medium.yaml` with `config/real-size.yaml` over it.",
        "",
        *(f"* {key}: {value}" for key, value in run.items()),
        *promise_lines(record),
        *learned_lines(record),
        "",
        "## Seconds and memory of each rule",
        "",
        "Mean seconds of a job by part: start of the process and imports; loading of the model's "
        "weights; what the first steps or iterations took beyond later ones, which find kernels "
        "compiled; work. Peaks are the highest of any job: resident memory of the process, and "
        "what MLX held.",
        "",
        *rule_lines(record),
        "",
        "## Disk",
        "",
        *disk_lines(record),
    ]
    if blocks["rows"]:
        lines += [
            "",
            "## Block errors",
            "",
            f"`benchmarks/real_size_blocks.py` on {', '.join(blocks['devices'])}; products of "
            f"float32 are computed {products}. Held-out errors in units of the block's update "
            "energy; the ratio is to `rtn` on the same entering streams. The difference is that "
            "of the errors, float16 from float32.",
            "",
            *verdict_lines(record),
            *seed_lines(record),
            "",
            *block_lines(record),
        ]
    return "\n".join(lines) + "\n"


def write_page(path: Path) -> Path:
    """The page of a record's JSON, beside it."""
    page = path.with_suffix(".md")
    page.write_text(render(json.loads(path.read_text("utf-8"))), "utf-8")
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("record", type=Path)
    print(write_page(parser.parse_args().record))


if __name__ == "__main__":
    main()
