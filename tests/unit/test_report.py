"""The page shows what the run's folder holds, for any text, and needs nothing from elsewhere."""

from __future__ import annotations

import copy
import html
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from ditquant.artifacts import read_json, write_json
from ditquant.plots.evaluation_charts import CHARTS
from ditquant.report import page as report
from ditquant.report import report_data
from support.run_folder import EVALUATED, PROMPTS, SHOWN, write_run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def config() -> dict:
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    options = {"bits": 4, "grid": "group", "group_size": 64, "balance": "none"}
    config["recipes"] = {
        name: {**options, **recipe}
        for name, recipe in config["recipes"].items()
        if name in ("rtn", "adaround")
    }
    return config


@pytest.fixture(scope="module")
def results(tmp_path_factory, config) -> Path:
    return write_run(tmp_path_factory.mktemp("results") / "demo", config)


@pytest.fixture(scope="module")
def data(results, config):
    return report.collect(results, config, PROMPTS, SHOWN, EVALUATED, ["rtn", "adaround"])


@pytest.fixture(scope="module")
def page(data):
    return report.render(data)


class Checker(HTMLParser):
    """Notes tags, links and whether every tag that is opened is closed in order."""

    VOID = frozenset({"meta", "img", "br", "path", "use", "rect", "link", "input", "hr"})

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.sources = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href") and value]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open, f"</{tag}> closes nothing"
            assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"


def test_the_page_is_well_formed_and_self_contained(page):
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert "script" not in checker.tags
    allowed = (
        "data:image/png;base64,",
        "data:image/svg+xml;base64,",
        "data:image/gif;base64,",
        "#",
    )
    assert all(source.startswith(allowed) for source in checker.sources)
    assert not re.search(r"@import|url\((?!#)", page)


def test_prompts_are_escaped_and_whole(page):
    text = html.unescape(page)
    for prompt in PROMPTS.values():
        assert prompt in text
    assert "<script>" not in page


def test_headline_numbers(data):
    cards = {card["label"]: card["value"] for card in data["cards"]}
    assert cards["Size of the MM-DiT"] == "3.5 × smaller"
    assert cards["Error against rtn"] == "0.25 ×"
    assert cards["Error of A8 against weights alone"] == "1.10 ×"
    assert cards["Captions drawn right"] == "75 %"
    # Errors e, 2e, 3e, 4e with PSNR -10 log10: the median lies between 2e and 3e.
    psnr = -5 * (np.log10(2e-3) + np.log10(3e-3))
    assert cards["Pictures, weights quantized"] == f"{psnr:.1f} dB"


def test_blocks_layers_and_activations(data, page):
    adaround = next(recipe for recipe in data["recipes"] if recipe["name"] == "adaround")
    # The second block kept nearest codes: (0.4 * 0.02 + 0.04) / (0.02 + 0.04).
    assert adaround["mean_ratio"] == pytest.approx(0.8)
    assert [block["kept"] for block in adaround["blocks"]] == ["adaround", "rtn"]
    assert adaround["smallest_binary_share"] == pytest.approx(0.977)
    assert adaround["accepted"] == 1
    assert next(recipe for recipe in data["recipes"] if recipe["name"] == "rtn")["mean_ratio"] == 1
    rows = data["weight_grid"]["rows"]
    assert [cell["text"] for cell in rows["img.attn.q_proj"]] == ["20.5", "21.5"]
    assert rows["txt.mlp.fc2"][1] is None
    assert [cell["text"] for cell in data["range_grid"]["rows"]["img.attn.q_proj"]] == [
        "5.0",
        "6.0",
    ]
    assert "25 % of the inputs are A4" in page
    assert "a scale for each measured σ, range by absmax." in page
    # The smaller of PNG and SVG, and behind it the one that moves.
    plots = [(p["name"], p["picture"].split(";")[0]) for p in data["activations"]["plots"]]
    kinds = ["data:image/png", "data:image/svg+xml", "data:image/gif"]
    assert plots == list(zip(["absmax", "drift", "drift"], kinds, strict=True))
    assert page.count('of the activations"></figure>') == 3
    assert "simulated" in page


def test_recipes_with_activations_of_their_own_are_named(tmp_path, results, config, page):
    assert "measured on their own model" not in page
    run = tmp_path / "own"
    shutil.copytree(results, run)
    recipes = {
        "rtn": config["recipes"]["rtn"],
        "adaround": {**config["recipes"]["adaround"], "balance": "csb"},
        # Nothing was made of this one.
        "taqdit": {**config["recipes"]["adaround"], "rounding": "taqdit"},
    }
    folder = run / "weights" / "adaround" / "activations"
    own = {"bits": 6, "granularity": "static", "range": "mse"}
    write_json(folder / "quant_config.json", "ditquant.quant_config", {"configuration": own})
    tiers = {"shares": {"A8": 1.0}, "average_bits": 7.25}
    write_json(folder / "quant_config_multitier.json", "ditquant.quant_config", {"summary": tiers})
    # Left by an earlier run, in which rtn balanced too.
    shutil.copytree(folder, run / "weights" / "rtn" / "activations")
    rows = report_data.own_activations(run, recipes)
    assert [(row["recipe"], row["why"]) for row in rows] == [("adaround", "channels balanced")]
    everything = {**config, "recipes": recipes}
    data = report.collect(run, everything, PROMPTS, SHOWN, EVALUATED, ["rtn", "adaround"])
    text = " ".join(report.render(data).split())
    assert "<b>adaround</b> (channels balanced): 6 bits; one scale for each layer, range by" in text
    assert "range by predicted error." in text
    assert "With tiers 7.25 bits on average." in text


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"rounding": "adaround", "balance": "none", "rotation": 64}, "inputs rotated"),
        ({"rounding": "awq", "balance": "none"}, "channels balanced"),
        ({"rounding": "taqdit", "balance": "none", "rotation": None}, "ranges learned"),
    ],
)
def test_why_a_recipe_has_activations_of_its_own(options, why):
    assert report_data.why_own_activations(options) == why


def test_sizes_are_those_that_the_checkpoint_states(results, data, page):
    sizes = report_data.checkpoint_sizes(results / "weights" / "rtn" / "model" / "config.json")
    assert sizes == {"quantized": 4500, "rest": 1500, "total": 6000, "quantized_ratio": 0.28125}
    float16, rtn, _ = data["sizes"]
    assert (float16["quantized"], float16["total"]) == (None, 28_000_000)
    assert rtn["ratio"] == pytest.approx(28_000_000 / 6000)
    assert "<td>28.1 %</td>" in page


def test_errors_stand_beside_those_of_the_baseline(data, page):
    rows = {row["variant"]: row for row in data["summary"]}
    assert rows["adaround-a8"]["latent_error_ratio"] == pytest.approx(1.1e-3 / 4e-3)
    assert rows["rtn-weights"]["baseline"] is None
    # Errors of all captions are proportional, so the interval has no width.
    assert '0.25 ×<span class="interval">0.25 – 0.25</span>' in page
    assert "of rtn-weights" in page


def test_the_shift_behind_gelu_is_stated(page):
    text = " ".join(page.split())
    assert "a shift lowers the predicted error at 8 bits to 0.31 times that without one" in text


def test_every_chart_of_the_evaluation_is_shown(page):
    for chart in CHARTS.values():
        assert chart.title in page


def test_stage_times_add_up(data):
    assert [(s["rule"], s["jobs"], s["seconds"], s["longest"]) for s in data["stages"]] == [
        ("merge_statistics", 1, 130.25, 130.25),
        ("generate_image", 2, 11.0, 6.5),
    ]
    assert data["stages"][1]["peak_bytes"] == 300 * 2**20
    lines = report.stage_table(data["stages"])
    assert "2 min 10 s" in lines[0]
    assert "2 min 21 s" in lines[-1]


def test_a_run_without_evaluation_or_tiers_has_a_page(tmp_path, results, config):
    run = tmp_path / "bare"
    shutil.copytree(results / "images", run / "images")
    shutil.copytree(results / "compare", run / "compare")
    data = report.collect(run, config, PROMPTS, SHOWN[:1], [], [])
    page = report.render(data)
    assert "adaround-weights" in page
    assert 'id="evaluation"' not in page
    assert 'id="weights"' not in page
    assert 'id="activations"' not in page
    assert data["cards"] == []


@pytest.mark.parametrize("width", [390, 1280])
def test_chromium_shows_the_page(tmp_path, page, width):
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium on this machine")
    (tmp_path / "index.html").write_text(page, encoding="utf-8")
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},2000",
        f"--screenshot={tmp_path / 'page.png'}", f"file://{tmp_path / 'index.html'}",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    with Image.open(tmp_path / "page.png") as shot:
        colors = shot.convert("RGB").getcolors(maxcolors=1 << 24)
    # Random pictures alone have thousands of colours; an empty page has one.
    assert colors is not None
    assert len(colors) > 1000


@pytest.mark.parametrize("kept", ["tuned", "start"])
def test_a_tuned_recipe_says_what_tuning_did(results, config, kept):
    config = copy.deepcopy(config)
    config["recipes"]["adaround"]["tune_iterations"] = 100
    document = {"error": {"start": 0.004, "tuned": 0.003}, "kept": kept, "diverged": None}
    write_json(results / "weights" / "adaround" / "tuned.json", "ditquant.tuning", document)
    data = report.collect(results, config, PROMPTS, SHOWN, EVALUATED, ["rtn", "adaround"])
    tunings = {recipe["name"]: recipe["tuning"] for recipe in data["recipes"]}
    assert tunings["rtn"] is None
    assert tunings["adaround"]["ratio"] == pytest.approx(0.75)
    page = report.render(data)
    assert "adaround: tuning all scales and biases together" in page
    assert ("the start was kept" in page) == (kept == "start")


def test_learning_that_diverged_stands_at_the_top(results, config, tmp_path):
    results = Path(shutil.copytree(results, tmp_path / "results" / "demo"))
    config = copy.deepcopy(config)
    config["recipes"]["adaround"]["tune_iterations"] = 100
    weights = results / "weights" / "adaround"
    block = read_json(weights / "blocks" / "mm01.json", "ditquant.block_result")
    for own in ("digest", "format", "version", "file"):
        block.pop(own, None)
    del block["hard_error"]["result"]
    block["diverged"] = {"reason": "Its error is <nan>", "advice": "Take a smaller learning rate"}
    block |= {"accepted": False, "kept": "rtn", "binary_share": None}
    write_json(weights / "blocks" / "mm01.json", "ditquant.block_result", block)
    lost = {"reason": "Its gradients overflow", "advice": "Set model.dtype to float32"}
    document = {"error": {"start": 0.004}, "kept": "start", "diverged": lost}
    write_json(weights / "tuned.json", "ditquant.tuning", document)
    data = report.collect(results, config, PROMPTS, SHOWN, EVALUATED, ["rtn", "adaround"])
    page = report.render(data)
    top = page[: page.index('id="pictures"')]
    alert = html.unescape(top[top.index('role="alert"') :])
    text = " ".join(re.sub(r"<(?!nan)[^>]*>", "", alert).split())
    assert (
        "adaround, block mm01: Its error is <nan>. Take a smaller learning rate and run the same "
        "command again. Until then it has the weights of rtn." in text
    )
    assert "adaround, the tuning of all blocks: Its gradients overflow. Set model.dtype" in text
    assert "rtn, learning diverged" in page
    assert "tuning all scales and biases together diverged" in page


def test_without_divergence_there_is_no_alert(page):
    assert 'role="alert"' not in page
