"""Rule plot_history: the learning of every block of a recipe, and its tuning, as a picture."""

from ditquant.artifacts import read_json, write_file
from ditquant.job import run_script
from ditquant.plots.charts import as_png, as_svg
from ditquant.plots.history_plots import draw_histories


def main(*, results: list[str], png: str, svg: str, recipe: str, tuned: str | None = None) -> None:
    """Writes the same chart as PNG and as SVG.

    Args:
        tuned: result of the recipe's tuning, if it is tuned.
    """
    tuning = read_json(tuned, "ditquant.tuning") if tuned else None
    chart = draw_histories(
        recipe, [read_json(path, "ditquant.block_result") for path in results], tuning
    )
    write_file(png, as_png(chart), "ditquant.plot")
    write_file(svg, as_svg(chart).encode(), "ditquant.plot")


run_script(main, globals())
