"""Rule optimize_block: one block's inputs and outputs -> its quantized weights."""

from pathlib import Path

from ditquant.activations.input_statistics import load_statistics
from ditquant.artifacts import load_metadata, save_tensors, write_json
from ditquant.job import LOG, input_files, job
from ditquant.models.load import DTYPES
from ditquant.models.spec import read_spec
from ditquant.network.diffusionkit import load_network
from ditquant.provenance import check_alike, check_options
from ditquant.weights.block_files import BLOCK_WEIGHTS
from ditquant.weights.block_io import BLOCK_IO, read_block
from ditquant.weights.divergence import told
from ditquant.weights.learning_state import Resume, resume_key
from ditquant.weights.prefix import prefix_streams
from ditquant.weights.recipes import quantize_block, recipe_grid
from ditquant.weights.reconstruct import block_problem
from ditquant.weights.rotation import rotate


def main(files: dict[str, list[str]], weights: str, result: str, params: dict) -> None:
    """Writes the packed weights ("mm03.img.attn.q_proj.weight", .scales, .biases) and the result.

    Beside them, as "parameters.<module path>", full-precision parameters that balancing changed.

    Args:
        files: "block_io" of each image; where the recipe asks for them "before", weights of the
            blocks before this one, and "statistics" of the activation track.
        params: of the rule.

    What an interrupted run had learned lies in a hidden file beside the output until it is done.
    """
    model, block, recipe = params["model"], params["block"], params["recipe"]
    check_alike(files["block_io"], "stride")
    for path in files.get("before", ()):
        check_options(path, f"the recipe of block {block}", recipe=recipe)
    spec = read_spec(model["name"], model["checkpoint"])
    network = load_network(spec, DTYPES[model["dtype"]], blocks=[block])
    rotate(network, recipe.get("rotation"))
    block_io, before = files["block_io"], files.get("before")
    prefix = prefix_streams(network, spec.block_names, block_io, before) if before else None
    data = read_block(block_io, spec.block_names, block, prefix)
    problem = block_problem(network, block, data, recipe_grid(recipe), recipe["holdout"])
    measured = load_statistics(files["statistics"][0]) if "statistics" in files else None
    resume = Resume(
        Path(weights).with_name(f".{block}.resume.safetensors"), resume_key(files, params)
    )
    quantized = quantize_block(problem, recipe, params["seed"], measured, resume)
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
    stride = int(load_metadata(files["block_io"][0], BLOCK_IO)["stride"])
    streams = {"images": len(files["block_io"]), "stride": stride}
    write_json(result, "ditquant.block_result", {**quantized.document, "streams": streams})
    resume.discard()


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
        main(
            input_files(snakemake),
            snakemake.output.weights,
            snakemake.output.result,
            dict(snakemake.params.items()),
        )
