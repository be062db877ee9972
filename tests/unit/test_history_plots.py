"""The picture of a learning: one panel a block, with what the JSON says."""

from __future__ import annotations

import pytest

from ditquant.plots.charts import as_png, as_svg
from ditquant.plots.history_plots import draw_histories


def document(index: int, accepted: bool = True) -> dict:
    history = [
        {"iteration": step, "error": 0.01 / step, "binary_share": step / 100}
        for step in range(10, 101, 10)
    ]
    held = {"train": 1e-3, "held_out": 2e-3}
    return {
        "block": f"mm{index:02d}",
        "hard_error": {"rtn": held, "result": {"train": 5e-4, "held_out": 1e-3}},
        "accepted": accepted,
        "diverged": None,
        "kept": "adaround" if accepted else "gptq",
        "history": history,
    }


@pytest.mark.parametrize("blocks", [1, 6, 24])
def test_every_block_has_a_panel(blocks):
    chart = draw_histories("best", [document(index) for index in range(blocks)])
    titles = [axes.get_title() for axes in chart.axes if axes.get_title()]
    assert titles == [f"mm{index:02d}: 0.50 × rtn held out" for index in range(blocks)]
    first = chart.axes[0].lines[0]
    assert first.get_ydata()[-1] == pytest.approx(0.01 / 100)


def test_a_refused_learning_says_what_was_kept():
    chart = draw_histories("best", [document(0, accepted=False)])
    assert chart.axes[0].get_title().endswith("kept gptq")


def test_a_block_without_quantized_linears_is_named():
    errors = {"train": 0.0, "held_out": 0.0}
    alone = {**document(0), "hard_error": {"rtn": errors, "result": errors}, "history": []}
    chart = draw_histories("best", [alone, document(1)])
    titles = [axes.get_title() for axes in chart.axes if axes.get_title()]
    assert titles == ["mm00: left alone", "mm01: 0.50 × rtn held out"]


def test_the_same_documents_give_the_same_bytes():
    pictures = [draw_histories("best", [document(0), document(1)]) for _ in range(2)]
    assert as_png(pictures[0]) == as_png(pictures[1])
    assert as_svg(pictures[0]) == as_svg(pictures[1])


def tuning(kept: str = "tuned") -> dict:
    history = [{"iteration": step, "error": 0.01 / step} for step in range(10, 101, 10)]
    history[-1]["held_out"] = 0.006
    errors = {"start": 0.01, "tuned": 0.006}
    return {"error": errors, "kept": kept, "diverged": None, "history": history}


@pytest.mark.parametrize("blocks", [0, 2, 6])
def test_the_tuning_has_a_panel_of_its_own(blocks):
    chart = draw_histories("best", [document(index) for index in range(blocks)], tuning())
    titles = [axes.get_title() for axes in chart.axes if axes.get_title()]
    assert titles[blocks:] == ["tuning: 0.60 × start"]
    assert "velocity error" in chart.get_suptitle()
    held_out = next(axes for axes in chart.axes if "tuning" in axes.get_title()).lines[1]
    assert list(held_out.get_ydata()) == [0.01, 0.006]


def test_a_refused_tuning_says_so():
    chart = draw_histories("gptq", [], tuning("start"))
    assert chart.axes[0].get_title().endswith("kept start")


@pytest.mark.parametrize("points", [0, 3])
def test_a_learning_that_diverged_says_so(points):
    lost = {"reason": "Its error is no finite number", "advice": "Take a smaller learning rate"}
    one, whole = document(0, accepted=False), tuning("start")
    for record in (one, whole):
        record["diverged"] = lost
        record["history"] = record["history"][:points]
    del one["hard_error"]["result"], whole["error"]["tuned"]
    chart = draw_histories("best", [one, document(1)], whole)
    titles = [axes.get_title() for axes in chart.axes if axes.get_title()]
    assert titles[0] == "mm00, kept gptq, learning diverged"
    assert titles[2] == "tuning, kept start, learning diverged"
    assert as_png(chart)
