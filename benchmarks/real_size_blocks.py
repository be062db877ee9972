"""Errors of every block by rtn, gptq, adaround and best, in float16 and float32, in one process.

    make real-size
    .venv/bin/python benchmarks/real_size_blocks.py --blocks mm00 mm12 mm23 --dtypes float16

Does what the jobs of rule optimize_block do, by the library's own calls and the configuration's
recipes, on the block inputs and outputs that the run cached, and walks through the blocks in their
order. A recipe whose blocks learn behind quantized ones (`best`) walks
through all blocks; a dtype that is not the run's computes the blocks' outputs anew from the cached
inputs. The JSON is written after each block: a run that is cut short leaves what it had.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from real_size_record import CONFIGURATIONS
from records import machine, read_configuration

from ditquant.backend import mx
from ditquant.errors import UserError
from ditquant.models.load import DTYPES
from ditquant.models.spec import ModelSpec, read_spec
from ditquant.network.blocks import Network
from ditquant.network.diffusionkit import load_network
from ditquant.planning.recipes import Recipe
from ditquant.weights.block_io import BlockData, read_block
from ditquant.weights.divergence import told
from ditquant.weights.prefix import streams_after
from ditquant.weights.quantize_block import quantize_block
from ditquant.weights.reconstruct import (
    BlockProblem,
    block_problem,
    weights_restored,
)

RECIPES = ("rtn", "gptq", "adaround", "best")

Row = dict[str, Any]


@dataclass
class Chain:
    """A recipe on its way through the blocks.

    Attributes:
        recipe: of a block.
        entering: streams behind the quantized blocks before, if it learns on them.
        broken: a block failed that the following ones would be behind.
    """

    recipe: Recipe
    entering: tuple[mx.array, ...] | None = None
    broken: bool = False


def _cast(streams: tuple[mx.array, ...], dtype: mx.Dtype) -> tuple[mx.array, ...]:
    return tuple(stream.astype(dtype) for stream in streams)


def data_of(
    network: Network, spec: ModelSpec, files: list[Path], block: str, dtype: mx.Dtype
) -> BlockData:
    """A block's cached rows; in another dtype than the run's with outputs of that dtype."""
    data = read_block(files, spec.block_names, block)
    if data.modulation.dtype == dtype:
        return data
    data = replace(
        data,
        inputs=_cast(data.inputs, dtype),
        targets=_cast(data.targets, dtype),
        modulation=data.modulation.astype(dtype),
    )
    outputs = streams_after(network, block, following(spec, block), data, {}, {})
    return replace(data, targets=outputs[: len(data.targets)])


def following(spec: ModelSpec, block: str) -> str:
    """The next block, or "out"."""
    names = [*spec.block_names, "out"]
    return names[names.index(block) + 1]


@dataclass(frozen=True)
class Setting:
    """A block of the full-precision model in one dtype, and its rows."""

    network: Network
    block: str
    data: BlockData

    def problem(self, chain: Chain) -> BlockProblem:
        """For a recipe, on the streams that enter by it."""
        entering = chain.entering and _cast(chain.entering, self.data.modulation.dtype)
        return block_problem(
            self.network,
            self.block,
            replace(self.data, prefix=entering),
            chain.recipe,
        )


def setting_of(spec: ModelSpec, files: list[Path], block: str, dtype: mx.Dtype) -> Setting:
    """The model is loaded anew: only this block's weights are read, and none stay in memory."""
    network = load_network(spec, dtype, blocks=[block])
    return Setting(network, block, data_of(network, spec, files, block, dtype))


def quantized(spec: ModelSpec, own: Setting, chain: Chain, seed: int) -> Row:
    """What a recipe makes of a block; moves a chained recipe on to the next."""
    problem = own.problem(chain)
    result = quantize_block(problem, chain.recipe, seed)
    if result.document["diverged"]:
        raise UserError(f"Learning diverged. {told(result.document)}")
    if chain.recipe.is_chained:
        with weights_restored(problem):
            chain.entering = streams_after(
                own.network,
                own.block,
                following(spec, own.block),
                problem.data,
                result.packed,
                result.parameters,
            )
            mx.eval(chain.entering)
    document = result.document
    rtn, kept = (document["hard_error"]["rtn"], document["kept_error"])
    return {
        "rtn": rtn["held_out"],
        "result": document["hard_error"]["result"]["held_out"],
        "kept": document["kept"],
        "kept_error": kept["held_out"],
        "ratio": kept["held_out"] / rtn["held_out"],
        "binary_share": document["binary_share"],
    }


def walk(
    model: Mapping[str, Any],
    files: list[Path],
    dtype: str,
    recipes: Mapping[str, Recipe],
    blocks: list[str],
    seed: int,
) -> Iterator[Row]:
    """One row a block and recipe, as soon as it is known.

    A recipe that fails tells so in its row ("error") and ends no other.
    """
    spec = read_spec(model["name"], model["checkpoint"])
    chains = {name: Chain(recipe) for name, recipe in recipes.items()}
    last = max(map(spec.block_names.index, blocks))
    for block in spec.block_names[: last + 1]:
        asked = [
            name
            for name, chain in chains.items()
            if not chain.broken and (chain.recipe.is_chained or block in blocks)
        ]
        if not asked:
            continue
        own = setting_of(spec, files, block, DTYPES[dtype])
        for name in asked:
            began = time.perf_counter()
            row = {"block": block, "recipe": name, "dtype": dtype}
            try:
                row |= quantized(spec, own, chains[name], seed)
            except UserError as error:
                chains[name].broken = chains[name].recipe.is_chained
                row["error"] = str(error)
            yield {**row, "seconds": time.perf_counter() - began}


def line(row: Row) -> str:
    start = f"{row['dtype']:8} {row['block']:6} {row['recipe']:9}"
    if "error" in row:
        return f"{start} {row['error']}"
    return (
        f"{start} rtn {row['rtn']:.6f}, kept {row['kept']} {row['kept_error']:.6f}, "
        f"ratio {row['ratio']:.4f}, {row['seconds']:.1f} s"
    )


def main(arguments: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configfile", type=Path, nargs="+", default=CONFIGURATIONS)
    parser.add_argument("--run", type=Path, help="its folder; results/{run} of the configuration")
    parser.add_argument("--blocks", nargs="+", help="mm00 mm12 ...; without it all")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float16", "float32"])
    parser.add_argument("--json", type=Path, help="written after each block")
    parser.add_argument(
        "--memory", type=float, help="GB that MLX may hold, where several share a device"
    )
    options = parser.parse_args(arguments)

    if options.memory:
        mx.set_memory_limit(int(options.memory * 1e9))
        mx.set_cache_limit(int(options.memory * 1e9) // 4)
    config = read_configuration(options.configfile)
    model = config["model"]
    run = options.run or Path("results") / config["run"]
    files = sorted((run / "block_io").glob("*.safetensors"))
    if not files:
        parser.error(f"{run / 'block_io'} holds nothing: make the run first.")
    names = read_spec(model["name"], model["checkpoint"]).block_names
    blocks = options.blocks or names
    unknown = [block for block in blocks if block not in names]
    if unknown:
        parser.error(f"no such blocks: {', '.join(unknown)}; there are {names[0]} to {names[-1]}.")
    recipes = {
        name: Recipe.from_params(config["recipes"][name]).of_block() for name in options.recipes
    }
    document: dict[str, Any] = {"machine": machine(), "rows": []}
    print(document["machine"], flush=True)
    for dtype in options.dtypes:
        for row in walk(model, files, dtype, recipes, blocks, config["seed"]):
            document["rows"].append(row)
            print(line(row), flush=True)
            if options.json:
                options.json.parent.mkdir(parents=True, exist_ok=True)
                unfinished = options.json.with_suffix(".partial")
                unfinished.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
                unfinished.replace(options.json)
    return document["rows"]


if __name__ == "__main__":
    main()
