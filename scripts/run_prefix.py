"""Rule run_prefix: a quantized block's inputs -> the streams that enter the block after it."""

from ditquant.artifacts import save_tensors
from ditquant.block_io import read_block
from ditquant.checkpoint import read_packed, read_parameters
from ditquant.job import job
from ditquant.models.load import DTYPES, load_mmdit
from ditquant.models.spec import read_spec
from ditquant.prefix import streams_after


def main(
    block_io: list[str],
    weights: str,
    prefix: str | None,
    output: str,
    model: dict,
    block: str,
) -> None:
    """Writes the streams that enter `block` behind quantized blocks: "img", "txt" or "uni".

    Args:
        weights: of the block before `block`.
        prefix: streams that enter the block before `block`; None if that is the first.
    """
    spec = read_spec(model["name"], model["checkpoint"])
    before = spec.block_names[spec.block_names.index(block) - 1]
    network = load_mmdit(spec, DTYPES[model["dtype"]])
    data = read_block(block_io, spec.block_names, before, prefix)
    streams = streams_after(
        network, before, block, data, read_packed([weights]), read_parameters([weights])
    )
    save_tensors(output, streams, {"kind": "ditquant.prefix", "block": block})


if "snakemake" in globals():
    with job(snakemake):
        main(
            snakemake.input.block_io,
            snakemake.input.weights,
            snakemake.input.get("prefix"),
            snakemake.output.prefix,
            snakemake.params.model,
            snakemake.wildcards.block,
        )
