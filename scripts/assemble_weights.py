"""Rule assemble_weights: quantized blocks, tuned or not, and the rest -> a native checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ditquant.artifacts import read_json, save_tensors, write_json
from ditquant.checkpoints.checkpoint import (
    FORMAT,
    ROTATION,
    WEIGHTS_FORMAT,
    checkpoint_tensors,
    quantization_config,
    stored_sizes,
)
from ditquant.job import LOG, run_script
from ditquant.models.load import DTYPES
from ditquant.models.spec import read_spec
from ditquant.network.diffusionkit import load_network
from ditquant.planning.recipes import Recipe
from ditquant.provenance import check_options
from ditquant.weights.block_files import read_packed, read_parameters, read_tuned
from ditquant.weights.other_linears import quantize_other_linears
from ditquant.weights.rotation import rotate


def main(
    *,
    blocks: list[str],
    config: str,
    output: str,
    model: dict[str, Any],
    name: str,
    recipe: dict[str, Any],
    results: Sequence[str] = (),
    tuned: str | None = None,
) -> None:
    """Writes config.json and model.safetensors as mlx-lm's conventions have them.

    Args:
        results: of the blocks; config.json names those whose learning diverged.
        tuned: scales and biases of the blocks' linears, if the recipe is tuned.
    """
    own = Recipe.from_params(recipe)
    for path in blocks:
        check_options(path, f"recipe {name}", recipe=own.of_block().params())
    if tuned is not None:
        check_options(tuned, f"recipe {name}", recipe=recipe)
    spec = read_spec(model["name"], model["checkpoint"])
    network = load_network(spec, DTYPES[model["dtype"]], blocks=[])
    rotate(network, own.rotation)
    network.module.load_weights(list(read_parameters(blocks).items()), strict=False)
    others = quantize_other_linears(network, own)
    for path, size in others.regrouped.items():
        LOG.info("%s: groups of %d, which divide its inputs", path, size)
    for path in others.kept:
        LOG.info("%s keeps its precision: no group size of MLX divides its inputs", path)
    packed = read_packed(blocks)
    if tuned is not None:
        packed = read_tuned(tuned, packed)
    quantized = {**packed, **others.packed}
    tensors = checkpoint_tensors(network, quantized)
    save_tensors(output, tensors, WEIGHTS_FORMAT)
    sizes = stored_sizes(tensors, quantized)
    document: dict[str, Any] = {
        "model": spec.name,
        "recipe": {"name": name, **recipe},
        "quantization": quantization_config(network, quantized),
        **sizes,
    }
    if own.rotation:
        document[ROTATION] = own.rotation
    documents = [read_json(path, "ditquant.block_result") for path in results]
    diverged = [one["block"] for one in documents if one["diverged"]]
    if diverged:
        document["diverged"] = diverged
        LOG.error(
            "Learning diverged in %s: this checkpoint of %s has other weights there. Change the "
            "recipe as the logs of these blocks say, and run the same command again.",
            ", ".join(diverged),
            name,
        )
    write_json(config, FORMAT, document)
    LOG.info(
        "%d quantized linears in %.3f of their float16 bytes; %d bytes in all",
        len(quantized),
        sizes["quantized_ratio"],
        Path(output).stat().st_size,
    )


run_script(
    main,
    globals(),
    blocks="input.weights",
    output="output.model",
    model="params.model",
    name="wildcards.recipe",
    recipe="params.recipe",
)
