"""Rule export_ranges: ranges of the linears' inputs, as tensors beside a recipe's checkpoint."""

from ditquant.activations.input_statistics import load_statistics
from ditquant.activations.quant_config import load_quant_config
from ditquant.artifacts import save_tensors
from ditquant.checkpoints.exported_ranges import KIND, input_ranges
from ditquant.job import run_script


def main(statistics: str, config: str, ranges: str, rotation: int | None = None) -> None:
    """Writes what a kernel with quantized activations would need; see `exported_ranges`.

    Args:
        rotation: the recipe's, if it has one.
    """
    tensors, metadata = input_ranges(
        load_statistics(statistics), load_quant_config(config), rotation
    )
    save_tensors(ranges, tensors, KIND, metadata)


run_script(main, globals())
