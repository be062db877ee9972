"""Rule optimize_block: one block's inputs and outputs -> its quantized weights."""

from pathlib import Path
from typing import Any

from ditquant.activations.input_statistics import load_statistics
from ditquant.artifacts import load_metadata, write_json
from ditquant.job import LOG, run_script
from ditquant.models.load import DTYPES
from ditquant.models.spec import read_spec
from ditquant.network.diffusionkit import load_network
from ditquant.planning.recipes import Recipe
from ditquant.provenance import check_alike, check_options
from ditquant.weights.block_files import write_block
from ditquant.weights.block_io import BLOCK_IO, read_block
from ditquant.weights.divergence import told
from ditquant.weights.learning import Resume, resume_key
from ditquant.weights.prefix import prefix_streams
from ditquant.weights.quantize_block import quantize_block
from ditquant.weights.reconstruct import block_problem
from ditquant.weights.rotation import rotate


def main(*, files: dict[str, list[str]], weights: str, result: str, params: dict[str, Any]) -> None:
    """Writes the packed weights ("mm03.img.attn.q_proj.weight", .scales, .biases) and the result.

    Beside them, as "parameters.<module path>", full-precision parameters that balancing changed.

    Args:
        files: "block_io" of each image; where the recipe asks for them "before", weights of the
            blocks before this one, and "statistics" of the activation track.
        params: of the rule.

    What an interrupted run had learned lies in a hidden file beside the output until it is done.
    """
    model, block, recipe = params["model"], params["block"], Recipe.from_params(params["recipe"])
    block_io, before = files["block_io"], files.get("before")
    check_alike(block_io, "stride")
    for path in before or ():
        check_options(path, f"the recipe of block {block}", recipe=params["recipe"])
    spec = read_spec(model["name"], model["checkpoint"])
    network = load_network(spec, DTYPES[model["dtype"]], blocks=[block])
    rotate(network, recipe.rotation)
    prefix = prefix_streams(network, spec.block_names, block_io, before) if before else None
    data = read_block(block_io, spec.block_names, block, prefix)
    problem = block_problem(network, block, data, recipe)
    measured = load_statistics(files["statistics"][0]) if "statistics" in files else None
    state = Path(weights).with_name(f".{block}.resume.safetensors")
    resume = Resume(state, resume_key(files, params))
    quantized = quantize_block(problem, recipe, params["seed"], measured, resume)
    log_result(quantized.document)
    write_block(weights, block, quantized.packed, quantized.parameters, quantized.activations)
    stride = int(load_metadata(block_io[0], BLOCK_IO)["stride"])
    streams = {"images": len(block_io), "stride": stride}
    write_json(result, "ditquant.block_result", {**quantized.document, "streams": streams})
    resume.discard()


def log_result(document: dict[str, Any]) -> None:
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


run_script(main, globals(), files="input", params="params")
