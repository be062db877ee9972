"""Rule merge_statistics: all images' activation statistics in one file, and two summaries."""

from ditquant.activations.input_statistics import load_statistics, merge, save_statistics
from ditquant.activations.summary import layer_summary, temporal_analysis
from ditquant.artifacts import write_json
from ditquant.job import run_script
from ditquant.provenance import check_alike


def main(parts: list[str], statistics: str, summary: str, temporal: str) -> None:
    """Writes the merged statistics, and per layer and step what people want to know of them."""
    check_alike(parts, "stride")
    merged = merge([load_statistics(part) for part in parts])
    save_statistics(statistics, merged)
    write_json(summary, "ditquant.layer_statistics", layer_summary(merged))
    write_json(temporal, "ditquant.layer_temporal_analysis", temporal_analysis(merged))


run_script(main, globals())
