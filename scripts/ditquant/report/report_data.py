"""What the report shows, read from a run's folder and shaped for the page.

Every function takes what it needs of the folder and gives plain data; a part that a run did not
make (no multi-tier configuration, no judge, another set of recipes) is empty and left out.
"""

from __future__ import annotations

import base64
import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..activations.scheme import config_file
from ..artifacts import read_file, read_json
from ..evaluation.comparison import difference
from ..evaluation.pictures import PICTURE, read_picture
from ..planning.recipes import Recipe
from ..planning.variants import Variant
from ..plots.activation_names import ACTIVATION_PLOTS
from ..plots.layout import made_by
from ..readable import fmt
from ..seals import damaged
from .what_was_run import Section, checkpoint_config

EXPLANATIONS = {
    "full": "nothing quantized",
    "noise-floor": "full precision, weights and layer inputs rounded through float16",
    "weights": "quantized weights, full-precision activations",
    "a8": "quantized weights, simulated activation quantization",
    "multitier": "quantized weights, simulated A4, A6 or A8 by layer and sigma",
    "native": "quantized weights that stay packed, unpacked or multiplied by MLX's kernels, "
    "whichever is faster",
}


def explanation(variant: str) -> str:
    """One line on what a variant is."""
    if variant in EXPLANATIONS:
        return EXPLANATIONS[variant]
    parsed = Variant.parse(variant)
    if parsed.kind in EXPLANATIONS and parsed.recipe:
        return EXPLANATIONS[parsed.kind]
    weights = "quantized" if parsed.recipe else "full-precision"
    return f"{weights} weights, activations simulated by {config_file(parsed.kind)}"


# ------------------------------------------------------------------------------- pictures


def data_uri(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def pictures(results: Path, prompts: Sequence[str], variants: Sequence[str]) -> list[Section]:
    """One entry a prompt: its text, the full-precision picture, and each variant's with numbers.

    Args:
        prompts: their ids.
        variants: as in the comparisons that exist.
    """
    rows = []
    for name in prompts:
        full = results / "images" / "full" / f"{name}.png"
        reference = read_picture(full)
        shown = []
        for variant in variants:
            path = results / "images" / variant / f"{name}.png"
            numbers = read_json(
                results / "compare" / variant / f"{name}.json", "ditquant.image_difference"
            )
            changed = difference(read_picture(path), reference, numbers["amplification"])
            shown.append(
                {
                    "variant": variant,
                    "picture": data_uri(read_file(path, PICTURE)),
                    "difference": data_uri(_png(changed)),
                    **numbers,
                }
            )
        first = shown[0] if shown else {"prompt": name, "seed": None, "amplification": None}
        rows.append(
            {
                "id": name,
                "text": first["prompt"],
                "full": data_uri(read_file(full, PICTURE)),
                "seed": first["seed"],
                "factor": first["amplification"],
                "pixelated": reference.shape[1] < 256,
                "variants": shown,
            }
        )
    return rows


# ---------------------------------------------------------------------------------- sizes


@dataclass(frozen=True)
class Size:
    """What a model takes, in bytes.

    Attributes:
        total: of all tensors.
        ratio: float16's total over this one; None where that is not known.
        quantized, rest: codes, scales and biases, and everything else.
        quantized_ratio: the quantized bytes over those of the same weights in float16.
    """

    name: str
    total: float
    ratio: float | None
    quantized: int | None = None
    rest: int | None = None
    quantized_ratio: float | None = None


def model_sizes(results: Path, recipes: Iterable[str], full_bytes: float | None) -> list[Size]:
    """Full precision in float16, if its bytes are known, and every recipe's checkpoint."""
    sizes = [Size("float16", full_bytes, 1.0)] if full_bytes else []
    for recipe in recipes:
        config = checkpoint_config(results, recipe)
        quantized, total = config["quantized_bytes"], config["total_bytes"]
        ratio = full_bytes / total if full_bytes else None
        rest, share = total - quantized, config["quantized_ratio"]
        sizes.append(Size(recipe, total, ratio, quantized, rest, share))
    return sizes


# ---------------------------------------------------------------------------------- times


@dataclass(frozen=True)
class Stage:
    """All jobs of a rule: seconds in sum and of the longest, peak memory in bytes."""

    rule: str
    jobs: int
    seconds: float
    longest: float
    peak_bytes: float


def stage_times(benchmarks: Path) -> list[Stage]:
    """The stages of a run, the longest first.

    The files are those that Snakemake's `benchmark:` wrote; a job that was not run again keeps the
    time of the run that made its result. That of an earlier report is left out, and an empty file:
    Snakemake does not sync what it writes, so that a power cut may leave one.

    Raises:
        UserError: a file that holds something else than jobs' seconds.
    """
    rules: dict[str, list[tuple[float, float]]] = {}
    for path in sorted(benchmarks.rglob("*.tsv")):
        relative = path.relative_to(benchmarks)
        rule = relative.parts[0] if len(relative.parts) > 1 else relative.stem
        if rule != "render_report" and path.stat().st_size:
            rules.setdefault(rule, []).extend(_jobs(path))
    stages = []
    for rule, jobs in rules.items():
        seconds, megabytes = zip(*jobs, strict=True)
        peak = max(megabytes) * 2**20
        stages.append(Stage(rule, len(jobs), sum(seconds), max(seconds), peak))
    return sorted(stages, key=lambda stage: (-stage.seconds, stage.rule))


def _jobs(path: Path) -> list[tuple[float, float]]:
    """Seconds and peak megabytes of the jobs in a file of Snakemake's, which carries no seal."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file, delimiter="\t"))
        jobs = [(float(line["s"]), _number(line["max_rss"])) for line in lines]
    except (KeyError, TypeError, ValueError, csv.Error):
        jobs = []
    if not jobs or not all(math.isfinite(seconds) for seconds, _ in jobs):
        raise damaged(path, "it holds no job's seconds")
    return jobs


def _number(text: str | None) -> float:
    """Snakemake writes "-" or "NA" where a job was too short to be measured."""
    try:
        return float(text or 0)
    except ValueError:
        return 0.0


# ------------------------------------------------------------------------------ activations


_KINDS = {".svg": "image/svg+xml", ".png": "image/png", ".gif": "image/gif"}


@dataclass(frozen=True)
class Plot:
    """A plot's name, what there is to see, and the picture as a data URI."""

    name: str
    note: str
    picture: str


def activation_plots(folder: Path) -> list[Plot]:
    """The plots of the activation track that there are, the smaller of PNG and SVG of each.

    A plot that moves comes behind the still one of its name.
    """
    plots = []
    for name, plot in ACTIVATION_PLOTS.items():
        files = {kind: folder / f"{name}{kind}" for kind in _KINDS}
        found = {kind: path for kind, path in files.items() if path.is_file()}
        moving = found.pop(".gif", None)
        shown = (
            [(min(found.values(), key=lambda path: path.stat().st_size), plot.note)]
            if found
            else []
        )
        if moving:
            shown.append((moving, "The same as a moving picture, from noise to image."))
        for path, note in shown:
            content = read_file(path, "ditquant.plot")
            plots.append(Plot(name, note, data_uri(content, _KINDS[path.suffix])))
    return plots


def activation_ranges(results: Path) -> dict[str, float]:
    """Linear name -> the largest |input| of all measured steps and images; empty if none was."""
    path = results / "activations" / "layer_statistics.json"
    if not path.is_file():
        return {}
    layers = read_json(path, "ditquant.layer_statistics")["layers"]
    return {name: max(layer["absmax"]) for name, layer in layers.items()}


def _chosen(folder: Path) -> Section:
    """Of the configurations in a folder: `single` (bits, how ranges are made) and `tiers`."""
    chosen: Section = {"single": None, "tiers": None}
    single = folder / "quant_config.json"
    if single.is_file():
        document = read_json(single, "ditquant.quant_config")
        chosen["single"] = {**document["configuration"], "made_by": made_by(document)}
    tiers = folder / "quant_config_multitier.json"
    if tiers.is_file():
        chosen["tiers"] = read_json(tiers, "ditquant.quant_config")["summary"]
    return chosen


def activation_bits(results: Path, name: str, recipe: Recipe) -> int | None:
    """Bits of the single-tier activations that a recipe's variants have."""
    track = results / "weights" / name if recipe.has_own_activations else results
    single = _chosen(track / "activations")["single"]
    return single["bits"] if single else None


def own_activations(results: Path, recipes: Mapping[str, Recipe]) -> list[Section]:
    """Of each recipe with activations of its own: `recipe`, `why`, and what `_chosen` says.

    Those whose configurations were not made are left out.
    """
    rows = []
    for name, recipe in recipes.items():
        if recipe.has_own_activations:
            chosen = _chosen(results / "weights" / name / "activations")
            if any(chosen.values()):
                rows.append({"recipe": name, "why": why_own_activations(recipe), **chosen})
    return rows


def why_own_activations(recipe: Recipe) -> str:
    """What a recipe with activations of its own does, in two words."""
    if recipe.rotation:
        return "inputs rotated"
    return "channels balanced" if recipe.balance_kind != "none" else "ranges learned"


def activation_summary(results: Path, recipes: Mapping[str, Recipe]) -> Section | None:
    """What was measured, how ranges drift, the shares of the tiers, and the plots.

    An absent part is None, an absent track is None altogether.
    """
    folder = results / "activations"
    own = own_activations(results, recipes)
    if not folder.is_dir() and not own:
        return None
    summary: Section = dict.fromkeys(("drift", "measured"))
    temporal = folder / "layer_temporal_analysis.json"
    if temporal.is_file():
        document = read_json(temporal, "ditquant.layer_temporal_analysis")
        summary["drift"] = document["summary"]
        summary["measured"] = {"images": len(document["images"]), "steps": len(document["steps"])}
    plots = activation_plots(folder / "plots")
    return {**summary, **_chosen(folder), "own": own, "plots": plots}


# --------------------------------------------------------------------------------- heat maps


# Light to dark blue; dark is what deserves a look.
_PALE, _DEEP = np.array([232, 241, 248.0]), np.array([6, 64, 115.0])


@dataclass(frozen=True)
class Cell:
    """A number as text, on a background with an ink that can be read on it."""

    text: str
    background: str
    ink: str


@dataclass(frozen=True)
class Grid:
    """A number for each layer: place in the block -> cells by block, None where it lacks one."""

    columns: list[str]
    rows: dict[str, list[Cell | None]]


def heat_map(values: Mapping[str, float], darker_is_larger: bool) -> Grid | None:
    """Linear name ("mm03.img.attn.q_proj") -> number, as a table; None: there are no numbers."""
    if not values:
        return None
    low, high = min(values.values()), max(values.values())

    def cell(value: float) -> Cell:
        place = (value - low) / (high - low or 1.0)
        depth = place if darker_is_larger else 1 - place
        red, green, blue = np.round(_PALE + (_DEEP - _PALE) * depth).astype(int).tolist()
        ink = "#fff" if depth > 0.5 else "#16222e"
        return Cell(fmt(value, "1"), f"rgb({red} {green} {blue})", ink)

    cells = {tuple(name.split(".", 1)): cell(value) for name, value in values.items()}
    columns = list(dict.fromkeys(block for block, _ in cells))
    places = dict.fromkeys(place for _, place in cells)
    rows = {place: [cells.get((block, place)) for block in columns] for place in places}
    return Grid(columns, rows)
