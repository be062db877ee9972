"""How well the demo model draws, and how far its judge can be trusted.

    .venv/bin/python benchmarks/demo_model.py [--captions 200] [--seed 0]

Two measurements. The judge: 1,000 fresh drawings must pass, and the same drawings must be rejected
under captions with one attribute changed. The model, at full precision: the share of held-out
captions whose picture satisfies the judge, in 28 steps with guidance 4; caption i is drawn from
seed 10,000 * SEED + i. Pictures are kept under results/, so an interrupted measurement goes on.
Results go to benchmarks/results/demo_model.json and .md.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import math
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import numpy as np  # noqa: E402

from demo_model import network, sampling, shapes  # noqa: E402
from demo_model.judge import compare, judge, look  # noqa: E402
from ditquant.backend import describe_device, mx  # noqa: E402
from ditquant.models.load import load_text_encoder, load_vae_decoder  # noqa: E402
from ditquant.models.spec import read_spec  # noqa: E402
from ditquant.models.text import token_batch  # noqa: E402
from ditquant.network.diffusionkit import load_network  # noqa: E402
from ditquant.planning.prompt_files import read_prompts  # noqa: E402

STEPS, CFG_WEIGHT = 28, 4.0
BATCH = 16
DRAWINGS = 1000
RESULTS = ROOT / "benchmarks" / "results"


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
    known = shapes.BACKGROUNDS if name == "background" else shapes.RELATIONS
    value = other(known, getattr(caption, name))
    return name, dataclasses.replace(caption, **{name: value})


def measure_judge(seed: int) -> dict[str, Any]:
    """Passed drawings, and accepted wrong captions by changed attribute."""
    rng = np.random.default_rng(seed)
    passed, tried, accepted = 0, Counter[str](), Counter[str]()
    for _ in range(DRAWINGS):
        caption = shapes.sample_caption(rng)
        scene = look(shapes.render(caption, rng))
        passed += compare(scene, caption).ok
        name, changed = one_changed(rng, caption)
        tried[name] += 1
        accepted[name] += compare(scene, changed).ok
    return {
        "drawings": DRAWINGS,
        "passed": passed,
        "wrong_captions": dict(tried),
        "wrong_captions_accepted": {name: accepted[name] for name in tried},
    }


def pictures(captions: list[str], seed: int, kept: Path) -> np.ndarray:
    """One picture a caption, uint8 (n, 128, 128, 3); batches that `kept` holds are not redrawn."""
    spec = read_spec("demo")
    text, tokenizer = load_text_encoder(spec, spec.text.encoders[0], mx.float32)
    mmdit, decoder = load_network(spec, mx.float32), load_vae_decoder(spec, mx.float32)
    empty = token_batch(tokenizer, [""])[0]
    kept.mkdir(parents=True, exist_ok=True)
    drawn = []
    for start in range(0, len(captions), BATCH):
        chosen = captions[start : start + BATCH]
        file = kept / f"{start:04d}-{len(chosen)}.npy"
        if not file.exists():
            seeds = range(10_000 * seed + start, 10_000 * seed + start + len(chosen))
            tokens = token_batch(tokenizer, chosen)
            (batch,) = sampling.draw_captions(
                network.DEMO, text, mmdit, decoder, tokens, empty, seeds, STEPS, CFG_WEIGHT, BATCH
            )
            np.save(file, batch)
        drawn.append(np.load(file))
        print(f"{start + len(chosen)} of {len(captions)} captions", flush=True)
    return np.concatenate(drawn)


def wilson(right: int, count: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    z, share = 1.96, right / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    reach = (
        z * math.sqrt(share * (1 - share) / count + z * z / (4 * count**2)) / (1 + z * z / count)
    )
    return middle - reach, middle + reach


def measure_model(count: int, seed: int) -> dict[str, Any]:
    """The judge's verdicts on pictures of the first `count` held-out captions."""
    captions = read_prompts(ROOT / "config/prompts/demo-evaluation.csv", "evaluation")[:count]
    kept = ROOT / "results" / "benchmarks" / f"demo_model-{seed}"
    verdicts = [
        judge(picture, caption)
        for picture, caption in zip(pictures(captions, seed, kept), captions, strict=True)
    ]
    right = sum(verdict.ok for verdict in verdicts)
    low, high = wilson(right, len(captions))
    return {
        "captions": len(captions),
        "right": right,
        "accuracy": right / len(captions),
        "accuracy_low": low,
        "accuracy_high": high,
        "wrong": [
            {"caption": caption, "index": index, "problems": verdict.problems}
            for index, (caption, verdict) in enumerate(zip(captions, verdicts, strict=True))
            if not verdict.ok
        ],
    }


def as_markdown(result: dict[str, Any]) -> str:
    """The result as a page."""
    judged, model = result["judge"], result["model"]
    wrong = sum(judged["wrong_captions"].values())
    accepted = sum(judged["wrong_captions_accepted"].values())
    lines = [
        "# The demo model and its judge",
        "",
        f"`{result['command']}` on {result['date']}; {result['machine']}.",
        "",
        "| measured | |",
        "| --- | --- |",
        f"| fresh drawings that pass the judge | {judged['passed']} of {judged['drawings']} |",
        f"| captions with one attribute changed that pass | {accepted} of {wrong} |",
        f"| held-out captions drawn right | **{100 * model['accuracy']:.1f} %** "
        f"({model['right']} of {model['captions']}; 95 % interval "
        f"{100 * model['accuracy_low']:.1f} to {100 * model['accuracy_high']:.1f} %) |",
        "",
        f"Full precision, {STEPS} steps, guidance {CFG_WEIGHT:g}. What was wrong:",
        "",
    ]
    for case in model["wrong"]:
        lines.append(f"* {case['index']}, *{case['caption']}*: {'; '.join(case['problems'])}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--captions", type=int, default=200, help="held-out captions, 256 at most")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.chdir(ROOT)
    result: dict[str, Any] = {
        "command": f"benchmarks/demo_model.py --captions {options.captions} --seed {options.seed}",
        "date": datetime.date.today().isoformat(),
        "machine": f"{describe_device()}, {os.cpu_count()} cores",
        "judge": measure_judge(options.seed),
        "model": measure_model(options.captions, options.seed),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "demo_model.json").write_text(json.dumps(result, indent=1) + "\n")
    page = as_markdown(result)
    (RESULTS / "demo_model.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
