"""Damage to files that the workflow reads and does not write: the model's own, and prompts.

They carry no seal. A damaged one is refused by name, or it is another model or another prompt: then
the plan makes everything again that reads it.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from support.workspace import Workspace

from . import jobs
from .corruption import TRACEBACK, Trial, damages, replace_content
from .jobs import Job
from .reference import Reference


@dataclass(frozen=True)
class Source:
    """A file from elsewhere.

    Attributes:
        path: where it lies.
        reader: a job that reads it; None where only planning does.
        rule: what the plan makes again if it is another file.
        foreign: a file of another kind.
    """

    path: Path
    reader: Job | None
    rule: str
    foreign: Path


def sources(workspace: Workspace, all_jobs: Sequence[Job]) -> list[Source]:
    """The files of a local model, and of the calibration prompts."""
    model = Path(workspace.config["model"]["checkpoint"])
    prompts = Path(workspace.config["prompts"]["calibration"])
    by_rule = {job.rule: job for job in all_jobs}
    weights, text = next(model.glob("*.safetensors")), model / "clip_l" / "model.fp16.safetensors"
    vocabulary, merges = model / "tokenizer_l" / "vocab.json", model / "tokenizer_l" / "merges.txt"
    encode, draw = "encode_prompts", "generate_calibration"
    return [
        Source(model / "config.json", by_rule[draw], draw, vocabulary),
        Source(weights, by_rule[draw], draw, text),
        Source(weights, by_rule["cache_block_io"], "cache_block_io", text),
        Source(weights, by_rule["export_weights"], "export_weights", text),
        Source(text, by_rule[encode], encode, weights),
        Source(model / "clip_l" / "config.json", by_rule[encode], encode, vocabulary),
        Source(vocabulary, by_rule[encode], encode, model / "config.json"),
        Source(merges, by_rule[encode], encode, prompts),
        Source(prompts, None, encode, vocabulary),
    ]


def try_sources(
    source: Source,
    targets: Sequence[str],
    workspace: Workspace,
    reference: Reference,
    chance: random.Random,
    places: slice = slice(None),
) -> Iterator[Trial]:
    """Damages a file where it lies, in some of all ways, and puts it back."""
    whole, kept = source.path.read_bytes(), source.path.with_name(source.path.name + ".kept")
    shutil.copy2(source.path, kept)
    try:
        ways = list(damages(whole, {}, source.foreign.read_bytes(), chance))
        for what, data in ways[places]:
            replace_content(source.path, data)
            yield _attempt(source, what, targets, workspace, reference)
            shutil.copy2(kept, source.path)
            reference.restore(workspace)
    finally:
        kept.replace(source.path)


def _attempt(
    source: Source, what: str, targets: Sequence[str], workspace: Workspace, reference: Reference
) -> Trial:
    reader = source.reader.rule if source.reader else "planning"
    words = f"{source.path.name}, {what}, read by {reader}"
    if source.reader is not None:
        done = jobs.run(source.reader, workspace)
        text = done.stdout + done.stderr
        if done.returncode:
            return _told(words, source.path, text)
        if all(reference.is_same(workspace, path) for path in source.reader.outputs):
            return Trial(words, "not read")
        reference.restore(workspace)
    done = workspace.snakemake(*targets, "--dry-run", "--quiet", "host", ok=False)
    text = done.stdout + done.stderr
    if done.returncode:
        return _told(words, source.path, text)
    if any(line.startswith(f"{source.rule} ") for line in text.splitlines()):
        return Trial(words, "made again")
    if source.reader is None:
        return Trial(words, "not read")
    return Trial(words, "fault", "other results, exit status 0, and the plan makes nothing again")


def _told(words: str, path: Path, text: str) -> Trial:
    if TRACEBACK in text:
        return Trial(words, "fault", f"a traceback: {text[-900:]}")
    if path.name not in text:
        return Trial(words, "fault", f"the message does not name the file: {text[-500:]}")
    return Trial(words, "told")
