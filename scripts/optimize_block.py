"""Rule optimize_block: one block's inputs and outputs -> its quantized weights."""

from pathlib import Path

from ditquant.artifacts import load_metadata, remove, save_tensors, write_json
from ditquant.job import LOG, job
from ditquant.models.load import DTYPES, load_mmdit
from ditquant.models.spec import read_spec
from ditquant.provenance import check_alike, check_options
from ditquant.statistics.input_statistics import load_statistics
from ditquant.weights.block_files import BLOCK_WEIGHTS
from ditquant.weights.block_io import BLOCK_IO, read_block
from ditquant.weights.divergence import told
from ditquant.weights.learning_state import resume_key
from ditquant.weights.prefix import prefix_streams
from ditquant.weights.recipes import quantize_block, recipe_grid
from ditquant.weights.reconstruct import block_problem
from ditquant.weights.rotation import rotate


def main(
    block_io: list[str],
    weights: str,
    result: str,
    model: dict,
    block: str,
    recipe: dict,
    seed: int,
    code: str,
    before: list[str] | None = None,
    statistics: str | None = None,
) -> None:
    """Writes the packed weights ("mm03.img.attn.q_proj.weight", .scales, .biases) and the result.

    Beside them, as "parameters.<module path>", full-precision parameters that balancing changed.

    Args:
        before: weights of the blocks before this one, if the recipe learns behind them.
        statistics: of the activation track, if the recipe balances by them.

    What an interrupted run had learned lies in a hidden file beside the output until it is done.
    """
    check_alike(block_io, "stride")
    for path in before or ():
        check_options(path, f"the recipe of block {block}", recipe=recipe)
    spec = read_spec(model["name"], model["checkpoint"])
    network = load_mmdit(spec, DTYPES[model["dtype"]], blocks=[block])
    rotate(network, recipe.get("rotation"))
    prefix = prefix_streams(network, spec.block_names, block_io, before) if before else None
    data = read_block(block_io, spec.block_names, block, prefix)
    problem = block_problem(network, block, data, recipe_grid(recipe), recipe["holdout"])
    settings = {"model": model, "block": block, "recipe": recipe, "seed": seed, "code": code}
    resume = Path(weights).with_name(f".{block}.resume.safetensors")
    sources = [*block_io, *(before or [])]
    measured = load_statistics(statistics) if statistics else None
    quantized = quantize_block(
        problem, recipe, seed, measured, resume, resume_key(sources, settings)
    )
    log_result(quantized.document)
    tensors = {}
    for name, packed in quantized.packed.items():
        tensors[f"{name}.weight"] = packed.weight
        tensors[f"{name}.scales"] = packed.scales
        tensors[f"{name}.biases"] = packed.biases
    sizes = {
        name: {"bits": packed.bits, "group_size": packed.group_size}
        for name, packed in quantized.packed.items()
    }
    tensors |= {f"parameters.{path}": array for path, array in quantized.parameters.items()}
    metadata = {
        "block": block,
        "quantization": sizes,
        "activations": quantized.activations,
    }
    save_tensors(weights, tensors, BLOCK_WEIGHTS, metadata)
    stride = int(load_metadata(block_io[0], BLOCK_IO)["stride"])
    streams = {"images": len(block_io), "stride": stride}
    write_json(result, "ditquant.block_result", {**quantized.document, "streams": streams})
    remove(resume)


def log_result(document: dict) -> None:
    rounding, errors = document["recipe"]["rounding"], document["hard_error"]
    if document["diverged"]:
        LOG.error(
            "Learning of block %s by %s diverged. %s Until then it has the weights of %s.",
            document["block"],
            rounding,
            told(document),
            document["kept"],
        )
        return
    LOG.info(
        "block error on held-out rows: %.3g by RTN, %.3g by %s; kept %s",
        errors["rtn"]["held_out"],
        errors["result"]["held_out"],
        rounding,
        document["kept"],
    )


if "snakemake" in globals():
    with job(snakemake):
        params = snakemake.params
        main(
            snakemake.input.block_io,
            snakemake.output.weights,
            snakemake.output.result,
            params.model,
            snakemake.wildcards.block,
            params.recipe,
            params.seed,
            params.code,
            snakemake.input.get("before"),
            snakemake.input.get("statistics"),
        )
