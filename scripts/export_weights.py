"""Rule export_weights: a native checkpoint -> one file that stock DiffusionKit loads."""

from pathlib import Path

from ditquant.artifacts import save_tensors
from ditquant.checkpoints.checkpoint import read_checkpoint
from ditquant.checkpoints.exports import KIND, export_checkpoint
from ditquant.job import LOG, run_script
from ditquant.models.spec import Model


def main(*, config: str, weights: str, model: Model, export: str) -> None:
    """Writes the export; its metadata say of which recipe it is and what was rounded for it."""
    spec, folder = model.spec, Path(config).parent
    exported = export_checkpoint(spec, folder, export)
    if exported.rerounded:
        LOG.warning(
            "WARNING: %d linears that the recipe kept at higher precision were rounded to nearest "
            "at 4 bits, because stock DiffusionKit's 4-bit layout holds nothing else: %s. Pictures "
            "will differ from the native checkpoint's; diffusionkit-fp16 keeps all values.",
            len(exported.rerounded),
            ", ".join(exported.rerounded),
        )
    if exported.inexact:
        LOG.warning(
            "WARNING: %d tensors were rounded to float16: %s",
            len(exported.inexact),
            ", ".join(exported.inexact),
        )
    metadata = {
        "export": export,
        "model": spec.name,
        "recipe": read_checkpoint(spec, folder)[0].get("recipe"),
        "rerounded": exported.rerounded,
        "inexact": exported.inexact,
    }
    save_tensors(weights, exported.tensors, KIND, metadata)
    LOG.info("%d tensors, %d bytes", len(exported.tensors), Path(weights).stat().st_size)


run_script(main, globals(), model="params.model")
