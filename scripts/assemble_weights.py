"""Rule assemble_weights: the quantized blocks of one recipe -> a native checkpoint."""

from pathlib import Path

from ditquant.artifacts import save_tensors, write_json
from ditquant.checkpoint import FORMAT, checkpoint_tensors, quantization_config, read_packed
from ditquant.job import LOG, job
from ditquant.models.load import DTYPES, load_mmdit
from ditquant.models.spec import read_spec


def main(
    blocks: list[str],
    config: str,
    output: str,
    model: dict,
    name: str,
    recipe: dict,
) -> None:
    """Writes config.json and model.safetensors as mlx-lm's conventions have them."""
    spec = read_spec(model["name"], model["checkpoint"])
    network = load_mmdit(spec, DTYPES[model["dtype"]])
    quantized = read_packed(blocks)
    save_tensors(output, checkpoint_tensors(network, quantized))
    document = {
        "model": spec.name,
        "recipe": {"name": name, **recipe},
        "quantization": quantization_config(network, quantized),
    }
    write_json(config, FORMAT, document)
    LOG.info("%d quantized linears, %d bytes", len(quantized), Path(output).stat().st_size)


if "snakemake" in globals():
    with job(snakemake):
        params = snakemake.params
        main(
            snakemake.input.weights,
            snakemake.output.config,
            snakemake.output.model,
            params.model,
            snakemake.wildcards.recipe,
            params.recipe,
        )
