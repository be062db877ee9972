"""Rule export_weights: a native checkpoint -> one file that stock DiffusionKit loads."""

from pathlib import Path

from ditquant.artifacts import save_tensors
from ditquant.checkpoints.checkpoint import read_checkpoint
from ditquant.checkpoints.exports import KIND, export_checkpoint
from ditquant.job import LOG, job
from ditquant.models.spec import read_spec


def main(config: str, output: str, model: dict, name: str) -> None:
    """Writes the export; its metadata say of which recipe it is and what was rounded for it."""
    spec = read_spec(model["name"], model["checkpoint"])
    folder = Path(config).parent
    export = export_checkpoint(spec, folder, name)
    if export.rerounded:
        LOG.warning(
            "WARNING: %d linears that the recipe kept at higher precision were rounded to nearest "
            "at 4 bits, because stock DiffusionKit's 4-bit layout holds nothing else: %s. Pictures "
            "will differ from the native checkpoint's; diffusionkit-fp16 keeps all values.",
            len(export.rerounded),
            ", ".join(export.rerounded),
        )
    if export.inexact:
        LOG.warning(
            "WARNING: %d tensors were rounded to float16: %s",
            len(export.inexact),
            ", ".join(export.inexact),
        )
    metadata = {
        "export": name,
        "model": spec.name,
        "recipe": read_checkpoint(spec, folder)[0].get("recipe"),
        "rerounded": export.rerounded,
        "inexact": export.inexact,
    }
    save_tensors(output, export.tensors, KIND, metadata)
    LOG.info("%d tensors, %d bytes", len(export.tensors), Path(output).stat().st_size)


if "snakemake" in globals():
    with job(snakemake):
        main(
            snakemake.input.config,
            snakemake.output.weights,
            snakemake.params.model,
            snakemake.wildcards.export,
        )
