"""How well the demo model draws, and how far its judge can be trusted.

    .venv/bin/python benchmarks/demo_accuracy.py [--captions 200] [--seed 0]

Two measurements. The judge: 1,000 fresh drawings must pass, and the same drawings must be rejected
under captions with one attribute changed. The model, at full precision: the share of held-out
captions whose picture satisfies the judge, in 28 steps with guidance 4; caption i is drawn from
seed 10,000 * SEED + i. Pictures are kept under results/, so an interrupted measurement goes on.
The record is benchmarks/results/demo_accuracy.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from records import RESULTS, ROOT, machine, save_section

from demo_model import network, sampling, shapes
from demo_model.judge import compare, judge, look
from ditquant.backend import mx
from ditquant.models.load import load_mmdit, load_text_encoder, load_vae_decoder
from ditquant.models.spec import read_spec
from ditquant.models.text import token_batch
from ditquant.planning.prompt_files import read_prompts

STEPS, CFG_WEIGHT = 28, 4.0
BATCH = 16
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
    known = shapes.BACKGROUNDS if name == "background" else shapes.RELATIONS
    value = other(known, getattr(caption, name))
    return name, dataclasses.replace(caption, **{name: value})


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


def pictures(captions: list[str], seed: int, kept: Path) -> np.ndarray:
    """One picture a caption, uint8 (n, 128, 128, 3); batches that `kept` holds are not redrawn."""
    spec = read_spec("demo")
    text, tokenizer = load_text_encoder(spec, spec.text.encoders[0], mx.float32)
    mmdit, decoder = load_mmdit(spec, mx.float32), load_vae_decoder(spec, mx.float32)
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


def measure_model(count: int, seed: int, kept: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of pictures of the first `count` held-out captions: the share that is right, the wrong."""
    captions = read_prompts(ROOT / "config/prompts/demo-evaluation.csv", "evaluation")[:count]
    wrong: dict[str, Any] = {}
    for index, picture in enumerate(pictures(captions, seed, kept)):
        verdict = judge(picture, captions[index])
        if not verdict.ok:
            wrong[str(index)] = {
                "caption": captions[index],
                "problems": "; ".join(verdict.problems),
            }
    right = len(captions) - len(wrong)
    low, high = wilson(right, len(captions))
    share = {"captions": len(captions), "right": right, "accuracy": right / len(captions)}
    return {"full": {**share, "low": low, "high": high}}, wrong


def main(arguments: list[str] | None = None) -> None:
    """Measures and writes the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--captions", type=int, default=200, help="held-out captions, 256 at most")
    parser.add_argument("--drawings", type=int, default=DRAWINGS, help="that the judge is shown")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=Path, help="where they are kept; below results/")
    parser.add_argument("--json", type=Path, default=RESULTS / "demo_accuracy.json")
    options = parser.parse_args(arguments)
    kept = options.pictures or ROOT / "results" / "benchmarks" / f"demo_accuracy-{options.seed}"
    about = {
        "command": f"benchmarks/demo_accuracy.py --captions {options.captions} "
        f"--seed {options.seed}",
        "machine": machine(),
    }
    save_section(options.json, "judge", measure_judge(options.seed, options.drawings), **about)
    model, wrong = measure_model(options.captions, options.seed, kept)
    save_section(options.json, "model", model, **about)
    save_section(options.json, "wrong", wrong, **about)


if __name__ == "__main__":
    main()
