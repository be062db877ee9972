"""How well the demo model draws, and how far its judge can be trusted.

    snakemake evaluate
    .venv/bin/python benchmarks/demo_accuracy.py results/demo

The judge: 1,000 fresh drawings must pass, and the same drawings must be rejected under captions
with one attribute changed. The model, at full precision: the share of the evaluation's captions
whose picture the judge accepts (`evaluation.captions` of the run: 256 at most), and what is wrong
with the others. The record is benchmarks/results/demo_accuracy.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from records import RESULTS, machine, save_section

from demo_model import shapes
from demo_model.judge import compare, look
from ditquant.artifacts import read_json
from ditquant.evaluation.table import FORMAT

DRAWINGS = 1000


def one_changed(rng: np.random.Generator, caption: shapes.Caption) -> tuple[str, shapes.Caption]:
    """A caption with one attribute changed, and the attribute's name."""

    def other(values: Any, value: str) -> str:
        rest = [each for each in values if each != value]
        return rest[int(rng.integers(len(rest)))]

    palette = {"size": shapes.SIZES, "color": shapes.COLORS, "shape": shapes.SHAPES}
    names = [*palette, "background", *(["relation"] if caption.relation else [])]
    name = names[int(rng.integers(len(names)))]
    if name in palette:
        at = int(rng.integers(len(caption.items)))
        value = other(palette[name], getattr(caption.items[at], name))
        items = list(caption.items)
        items[at] = dataclasses.replace(items[at], **{name: value})
        return name, dataclasses.replace(caption, items=tuple(items))
    if name == "background":
        value = other(shapes.BACKGROUNDS, caption.background)
        return name, dataclasses.replace(caption, background=value)
    value = other(shapes.RELATIONS, caption.relation or "")
    return name, dataclasses.replace(caption, relation=value)


def measure_judge(seed: int, drawings: int) -> dict[str, dict[str, int]]:
    """Drawings tried and passed: by their own captions, and by those with one attribute changed."""
    rng = np.random.default_rng(seed)
    tried, passed = Counter[str](), Counter[str]()
    for _ in range(drawings):
        caption = shapes.sample_caption(rng)
        scene = look(shapes.render(caption, rng))
        name, changed = one_changed(rng, caption)
        for kind, said in (("right captions", caption), (f"wrong {name}", changed)):
            tried[kind] += 1
            passed[kind] += compare(scene, said).ok
    return {kind: {"tried": tried[kind], "passed": passed[kind]} for kind in tried}


def wilson(right: int, count: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    z, share = 1.96, right / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    spread = math.sqrt(share * (1 - share) / count + z * z / (4 * count**2))
    reach = z * spread / (1 + z * z / count)
    return middle - reach, middle + reach


def judged(run: Path) -> tuple[dict[str, Any], dict[str, dict[str, str]]]:
    """Of the pictures at full precision: the share that is right, and what is wrong with others."""
    captions = read_json(run / "evaluation" / "full.json", FORMAT)["captions"]
    wrong = {
        str(index): {"caption": one["caption"], "problems": "; ".join(one["judge"]["problems"])}
        for index, one in enumerate(captions)
        if not one["judge"]["ok"]
    }
    count, right = len(captions), len(captions) - len(wrong)
    low, high = wilson(right, count)
    share = {"captions": count, "right": right, "accuracy": right / count}
    return {**share, "low": low, "high": high}, wrong


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="results/{run} of the demo model")
    parser.add_argument("--drawings", type=int, default=DRAWINGS, help="that the judge is shown")
    parser.add_argument("--seed", type=int, default=0, help="of the drawings")
    parser.add_argument("--json", type=Path, default=RESULTS / "demo_accuracy.json")
    options = parser.parse_args(arguments)
    model, wrong = judged(options.run)
    sections: dict[str, dict[str, Any]] = {
        "judge": measure_judge(options.seed, options.drawings),
        "model": {"full": model},
        "wrong": wrong,
    }
    command = f"snakemake evaluate; benchmarks/demo_accuracy.py {options.run}"
    for name, rows in sections.items():
        save_section(options.json, name, rows, command=command, machine=machine())


if __name__ == "__main__":
    main()
