"""Rules visualize_activations and animate_activations: one plot of the activations."""

from collections.abc import Sequence
from pathlib import Path

from ditquant.activations.input_statistics import load_statistics
from ditquant.activations.quant_config import CONFIG_FORMAT
from ditquant.artifacts import read_json, write_file
from ditquant.job import run_script
from ditquant.plots.activation_animation import animate_drift
from ditquant.plots.activation_plots import draw
from ditquant.plots.charts import as_png, as_svg
from ditquant.plots.layout import PlotOptions


def main(
    statistics: str,
    plots: dict[str, str],
    snapshot_steps: list[int],
    layers: int,
    configs: Sequence[str] = (),
) -> None:
    """Writes the plot that the output files are named after, each in the format of its suffix.

    Args:
        configs: the configuration that the plot shows, if it shows one.
        plots: a PNG and an SVG file of the same name, or a GIF file, which moves, by any names.
        snapshot_steps, layers: see `PlotOptions`.
    """
    measured, files = load_statistics(statistics), list(plots.values())
    contents = {}
    if Path(files[0]).suffix == ".gif":
        contents[files[0]] = animate_drift(measured)
    else:
        document = read_json(configs[0], CONFIG_FORMAT) if configs else {}
        options = PlotOptions(snapshot_steps, layers)
        figure = draw(Path(files[0]).stem, measured, document, options)
        for path in files:
            is_vector = Path(path).suffix == ".svg"
            contents[path] = as_svg(figure).encode() if is_vector else as_png(figure)
    for path, content in contents.items():
        write_file(path, content, "ditquant.plot")


run_script(main, globals(), plots="output")
