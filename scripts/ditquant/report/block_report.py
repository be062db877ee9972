"""The weight track for the report: every block's error by recipe, and every layer's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from ..artifacts import read_json
from ..planning.recipes import Recipe
from ..plots.charts import (
    as_svg,
    figure,
    for_page,
    legend_below,
    legend_height,
    line_styles,
    log_axis,
    styled,
)
from ..weights.divergence import kept_text
from .what_was_run import BLOCK_FORMAT, block_files

TUNING_FORMAT = "ditquant.tuning"


@dataclass(frozen=True)
class Block:
    """One block's held-out errors, and what its recipe kept.

    Attributes:
        rtn_error, learned_error, error: of rounding to nearest, of what was learned, and of the
            codes that were kept.
        binary_share: of the roundings, those that are decided; None where none is learned.
        kept: in words.
        diverged: reason and advice; None if nothing diverged.
        sqnr: linear name -> signal-to-quantization-noise ratio of its weights in dB.
    """

    name: str
    rtn_error: float
    learned_error: float | None
    error: float
    binary_share: float | None
    accepted: bool
    kept: str
    diverged: Mapping[str, str] | None
    sqnr: Mapping[str, float]

    @property
    def ratio(self) -> float | None:
        return self.error / self.rtn_error if self.rtn_error else None


@dataclass(frozen=True)
class Tuned:
    """Held-out velocity error before and after the tuning of a whole network.

    Attributes:
        tuned: None if it diverged.
        kept: "tuned" or "start".
        diverged: see `Block`.
    """

    start: float
    tuned: float | None
    kept: str
    diverged: Mapping[str, str] | None

    @property
    def ratio(self) -> float | None:
        return None if self.tuned is None else self.tuned / self.start


@dataclass(frozen=True)
class Weights:
    """What a recipe made of all blocks, in order; `tuning` is None where there was none."""

    name: str
    recipe: Recipe
    blocks: Sequence[Block]
    tuning: Tuned | None

    @property
    def grid(self) -> str:
        size = self.recipe.group_size
        return "per channel" if self.recipe.grid == "channel" else f"groups of {size}"

    @property
    def learned(self) -> bool:
        return self.recipe.rounding != "rtn"

    @property
    def accepted(self) -> int:
        """Blocks whose learned codes were kept."""
        return sum(block.accepted for block in self.blocks)

    @property
    def mean_error(self) -> float:
        return fmean(block.error for block in self.blocks)

    @property
    def mean_ratio(self) -> float | None:
        rtn = fmean(block.rtn_error for block in self.blocks)
        return self.mean_error / rtn if rtn else None

    @property
    def smallest_binary_share(self) -> float | None:
        shares = (block.binary_share for block in self.blocks)
        return min((share for share in shares if share is not None), default=None)

    @property
    def sqnr(self) -> dict[str, float]:
        """Linear name -> dB, see `Block`."""
        return {name: decibels for block in self.blocks for name, decibels in block.sqnr.items()}

    @property
    def diverged(self) -> list[tuple[str, str, Mapping[str, str]]]:
        """Where learning diverged, what was kept instead, and its reason and advice."""
        places = [(f"block {b.name}", b.kept.partition(",")[0], b.diverged) for b in self.blocks]
        if self.tuning:
            places.append(("the tuning of all blocks", "start", self.tuning.diverged))
        return [(place, kept, why) for place, kept, why in places if why]


def _block(file: Path, learned: bool) -> Block:
    document = read_json(file, BLOCK_FORMAT)
    errors = document["hard_error"]
    return Block(
        name=document["block"],
        rtn_error=errors["rtn"]["held_out"],
        learned_error=errors["result"]["held_out"] if learned and "result" in errors else None,
        error=document["kept_error"]["held_out"],
        binary_share=document["binary_share"],
        accepted=learned and document["accepted"],
        kept=kept_text(document),
        diverged=document["diverged"],
        sqnr={name: layer["weight_sqnr_db"] for name, layer in document["linears"].items()},
    )


def _tuned(results: Path, recipe: str) -> Tuned:
    document = read_json(results / "weights" / recipe / "tuned.json", TUNING_FORMAT)
    errors = document["error"]
    return Tuned(errors["start"], errors.get("tuned"), document["kept"], document["diverged"])


def weight_results(results: Path, recipes: Mapping[str, Recipe]) -> list[Weights]:
    """One entry a recipe that has blocks.

    Args:
        results: a run's folder.
        recipes: by name, those whose checkpoints exist.
    """
    found = []
    for name, recipe in recipes.items():
        files = block_files(results, name)
        if files:
            blocks = [_block(file, recipe.rounding != "rtn") for file in files]
            tuning = _tuned(results, name) if recipe.tuning else None
            found.append(Weights(name, recipe, blocks, tuning))
    return found


@styled()
def block_chart(weights: Sequence[Weights]) -> str:
    """Every block's error by recipe, as SVG for a page; a logarithmic scale."""
    names = [block.name for block in weights[0].blocks]
    styles = line_styles(one.name for one in weights)
    width, columns = (4.9, 2) if len(names) <= 8 else (9.6, 4)
    chart, axes = figure(width, 3.1 + legend_height(len(weights), columns))
    for one in weights:
        errors = [block.error for block in one.blocks]
        axes.plot(range(len(errors)), errors, ms=5, lw=1.2, label=one.name, **styles[one.name])
    log_axis(axes, "y")
    axes.set_xticks(range(len(names)), names, rotation=90 if len(names) > 16 else 0)
    axes.set_ylabel("error / update energy")
    axes.grid(axis="y")
    legend_below(chart, axes, columns)
    return for_page(as_svg(chart))
