"""The page shows what the run's folder holds, for any text, and needs nothing from elsewhere."""

from __future__ import annotations

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
from ditquant.errors import UserError
from ditquant.planning.recipes import Recipe
from ditquant.plots.evaluation_charts import CHARTS
from ditquant.report import page as report
from ditquant.report import report_data
from ditquant.report.what_was_run import Shown
from ditquant.seals import SEAL_KEYS
from support import run_folder
from support.problems import whole_recipe
from support.run_folder import (
    EVALUATED,
    MODEL,
    PLOT,
    PROMPTS,
    SHOWN,
    checkpoint,
    made,
    picture,
    write_block,
    write_checkpoint,
    write_comparison,
    write_image,
    write_quant_configs,
    write_run,
    write_tuning,
    write_weights,
)


def options_of(rounding: str, **options) -> dict:
    return whole_recipe(rounding, **options).params()


RECIPES = {"rtn": options_of("rtn"), "adaround": options_of("adaround", iterations=300)}
TUNED = options_of("adaround", iterations=300, tune_iterations=100)
ALL = Shown("adaround", list(PROMPTS), SHOWN, EVALUATED, ["rtn", "adaround"])


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("page") / "results" / "demo", RECIPES)


@pytest.fixture
def other(results, tmp_path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(results, tmp_path / "results" / "demo"))


@pytest.fixture(scope="module")
def data(results):
    return report.collect(results, ALL)


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
    cards = {card.label: card.value for card in data["cards"]}
    assert cards["Size of the MM-DiT"] == "3.5 × smaller"
    assert cards["Error against rtn"] == "0.25 ×"
    assert cards["Error of A8 against weights alone"] == "1.10 ×"
    assert cards["Captions drawn right"] == "75 %"
    # Errors e, 2e, 3e, 4e with PSNR -10 log10: the median lies between 2e and 3e.
    psnr = -5 * (np.log10(2e-3) + np.log10(3e-3))
    assert cards["Pictures, weights quantized"] == f"{psnr:.1f} dB"


def test_blocks_layers_and_activations(data, page):
    adaround = next(recipe for recipe in data["recipes"] if recipe.name == "adaround")
    # The second block kept nearest codes: (0.4 * 0.02 + 0.04) / (0.02 + 0.04).
    assert adaround.mean_ratio == pytest.approx(0.8)
    assert [block.kept for block in adaround.blocks] == ["adaround", "rtn"]
    assert adaround.smallest_binary_share == pytest.approx(0.977)
    assert adaround.accepted == 1
    assert next(recipe for recipe in data["recipes"] if recipe.name == "rtn").mean_ratio == 1
    rows = data["weight_grid"].rows
    assert [cell.text for cell in rows["img.attn.q_proj"]] == ["20.5", "21.5"]
    assert rows["txt.mlp.fc2"][1] is None
    assert [cell.text for cell in data["range_grid"].rows["img.attn.q_proj"]] == [
        "5.0",
        "6.0",
    ]
    assert "25 % of the inputs are A4" in page
    assert "a scale for each measured σ, range by absmax." in page
    # The smaller of PNG and SVG, and behind it the one that moves.
    plots = [(p.name, p.picture.split(";")[0]) for p in data["activations"]["plots"]]
    kinds = ["data:image/png", "data:image/svg+xml", "data:image/gif"]
    assert plots == list(zip(["absmax", "drift", "drift"], kinds, strict=True))
    assert page.count('of the activations"></figure>') == 3
    assert "Activation quantization is simulated." in page


def test_recipes_with_activations_of_their_own_are_named(other, page):
    assert "measured on their own model" not in page
    # Nothing was made of the activations of taqdit.
    recipes = {
        "adaround": options_of("adaround", balance="csb"),
        "taqdit": options_of("taqdit"),
    }
    shutil.rmtree(other / "compare")
    for name, options in recipes.items():
        write_weights(other, name, options)
    own = {"bits": 6, "granularity": "static"}
    write_quant_configs(other, "weights/adaround/activations", own, "mse", 7.25)
    # Left by an earlier run, in which rtn balanced too.
    write_quant_configs(other, "weights/rtn/activations", own)
    options = {"rtn": RECIPES["rtn"], **recipes}
    of = {name: Recipe.from_params(params) for name, params in options.items()}
    rows = report_data.own_activations(other, of)
    assert [(row["recipe"], row["why"]) for row in rows] == [("adaround", "channels balanced")]
    shown = Shown("adaround", [], ["adaround-a8"], [], ["rtn", "adaround", "taqdit"])
    text = " ".join(report.render(report.collect(other, shown)).split())
    assert "<b>adaround</b> (channels balanced): 6 bits; one scale for each layer, range by" in text
    assert "range by predicted error." in text
    assert "With tiers 7.25 bits on average." in text
    assert "their inputs are rounded to 6 bits" in text


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"rounding": "adaround", "rotation": 64}, "inputs rotated"),
        ({"rounding": "awq"}, "channels balanced"),
        ({"rounding": "taqdit"}, "ranges learned"),
    ],
)
def test_why_a_recipe_has_activations_of_its_own(options, why):
    assert report_data.why_own_activations(whole_recipe(**options)) == why


def test_sizes_are_those_that_the_checkpoint_states(results, data, page):
    alone = report_data.model_sizes(results, ["rtn"], None)
    assert alone == [report_data.Size("rtn", 6000, None, 4500, 1500, 0.28125)]
    float16, rtn, _ = data["sizes"]
    assert (float16.quantized, float16.total) == (None, 28_000_000)
    assert rtn.ratio == pytest.approx(28_000_000 / 6000)
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
    assert [(s.rule, s.jobs, s.seconds, s.longest) for s in data["stages"]] == [
        ("merge_statistics", 1, 130.25, 130.25),
        ("generate_image", 2, 11.0, 6.5),
    ]
    assert data["stages"][1].peak_bytes == 300 * 2**20
    lines = report.stage_table(data["stages"])
    assert "2 min 10 s" in lines[0]
    assert "2 min 21 s" in lines[-1]


def test_a_file_of_seconds_that_a_power_cut_emptied_is_left_out(tmp_path):
    for name, text in (("draw/0000.tsv", ""), ("draw/0001.tsv", "s\tmax_rss\n2.5\t100\n")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert [(one.rule, one.jobs) for one in report_data.stage_times(tmp_path)] == [("draw", 1)]
    path.write_text("s\n")
    with pytest.raises(UserError, match=r"0001\.tsv is damaged"):
        report_data.stage_times(tmp_path)


def test_a_run_without_evaluation_or_tiers_has_a_page(tmp_path):
    run = tmp_path / "results" / "bare"
    run_folder.write_calibration(run)
    for recipe, options in RECIPES.items():
        write_weights(run, recipe, options)
    for variant in ("full", "adaround-weights"):
        write_image(run, variant, "p00", 1)
    write_comparison(run, "adaround-weights", "p00")
    for name in ("weights", "calibration", "block_io"):
        shutil.rmtree(run / name)
    data = report.collect(run, Shown("adaround", ["p00"], ["adaround-weights"], [], []))
    page = report.render(data)
    assert "adaround-weights" in page
    assert 'id="evaluation"' not in page
    assert 'id="weights"' not in page
    assert 'id="activations"' not in page
    assert data["cards"] == []
    assert data["facts"] == {
        "Model": "demo, computed in float32",
        "Pictures": "28 steps, guidance 4, noise seeds 42",
    }


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
def test_a_tuned_recipe_says_what_tuning_did(other, kept):
    write_weights(other, "adaround", TUNED)
    document = {"error": {"start": 0.004, "tuned": 0.003}, "kept": kept, "diverged": None}
    write_tuning(other, "adaround", TUNED, document)
    data = report.collect(other, Shown("adaround", [], [], [], ["rtn", "adaround"]))
    tunings = {recipe.name: recipe.tuning for recipe in data["recipes"]}
    assert tunings["rtn"] is None
    assert tunings["adaround"].ratio == pytest.approx(0.75)
    page = report.render(data)
    assert "adaround: tuning all scales and biases together" in page
    assert ("the start was kept" in page) == (kept == "start")


def test_learning_that_diverged_stands_at_the_top(other):
    write_weights(other, "adaround", TUNED)
    diverged = {"reason": "Its error is <nan>", "advice": "Take a smaller learning rate"}
    lost = {"diverged": diverged, "accepted": False, "kept": "rtn", "binary_share": None}
    write_block(other, "adaround", TUNED, 1, hard_error={"rtn": {"held_out": 0.04}}, **lost)
    write_checkpoint(other, "adaround", TUNED)
    lost = {"reason": "Its gradients overflow", "advice": "Set model.dtype to float32"}
    document = {"error": {"start": 0.004}, "kept": "start", "diverged": lost}
    write_tuning(other, "adaround", TUNED, document)
    page = report.render(report.collect(other, Shown("adaround", [], [], [], ["rtn", "adaround"])))
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


# ------------------------------------------------------------------- what does not belong together


def refusal(results: Path) -> str:
    with pytest.raises(UserError) as error:
        report.collect(results, ALL)
    return str(error.value)


def test_the_page_says_what_the_artifacts_tell(data, page):
    assert data["facts"] == {
        "Model": "demo, computed in float32",
        "Calibration": "2 images of 50 steps, guidance 4, noise seeds 42 to 43",
        "Weight track": "2 images, one step in 10",
        "Activation track": "2 images, 3 steps, 8 bits, step scales by absmax",
        "Pictures": "28 steps, guidance 4, noise seeds 42",
        "Evaluation": "4 captions, 28 steps, guidance 4, noise seeds 10042 to 10045",
        "Recipes": "rtn, adaround",
    }
    told = yaml.safe_load(data["configuration"])
    assert told["recipes"] == RECIPES
    assert told["calibration"]["num_steps"] == 50
    assert "4-bit weights (groups of 64), chosen by adaround, and their inputs" in page


def test_the_page_follows_a_run_by_other_options(other):
    options = {**RECIPES["adaround"], "bits": 3, "group_size": 32, "iterations": 20}
    write_weights(other, "adaround", options)
    run = other.rename(other.with_name("small"))
    data = report.collect(run, Shown("adaround", [], [], [], ["rtn", "adaround"]))
    assert yaml.safe_load(data["configuration"])["recipes"]["adaround"]["iterations"] == 20
    assert data["run"]["name"] == "small"
    adaround = data["recipes"][1]
    assert (adaround.recipe.bits, adaround.grid) == (3, "groups of 32")
    assert "3-bit weights (groups of 32)" in data["lede"]


def test_an_evaluation_of_another_checkpoint_is_refused(other):
    write_weights(other, "adaround", {**RECIPES["adaround"], "iterations": 20})
    message = refusal(other)
    assert "was made from another" in message
    assert "weights/adaround/model/config.json" in message
    assert "run the same command again" in message


def test_blocks_by_other_options_are_refused(other):
    options = {**RECIPES["adaround"], "iterations": 20}
    write_block(other, "adaround", options, 1)
    message = refusal(other)
    assert "model/config.json was made from another" in message
    assert "weights/adaround/blocks/mm01" in message


def test_a_checkpoint_of_blocks_by_other_options_is_refused(other):
    """As a release would have joined them that did not look."""
    shutil.rmtree(other / "evaluation")
    shutil.rmtree(other / "compare")
    write_weights(other, "adaround", {**RECIPES["adaround"], "iterations": 20})
    config, _ = checkpoint("adaround")
    document = read_json(other / config, "ditquant.checkpoint")
    sources = list(document["made_by"]["sources"])
    recipe = {"name": "adaround", **RECIPES["adaround"]}
    payload = {key: value for key, value in document.items() if key not in (*SEAL_KEYS, "made_by")}
    with made(other, "assemble_weights", *sources, model=MODEL, recipe=RECIPES["adaround"]):
        write_json(other / config, "ditquant.checkpoint", {**payload, "recipe": recipe})
    with pytest.raises(UserError, match="iterations is 20 and not 300"):
        report.collect(other, Shown("adaround", [], [], [], ["rtn", "adaround"]))


def test_pictures_of_other_steps_are_refused(other):
    write_image(other, "adaround-a8", "p01", 12, num_steps=8)
    message = refusal(other)
    assert "compare/adaround-a8/p01.json was made from another" in message
    write_image(other, "full", "p01", 10, num_steps=8)
    for variant in SHOWN:
        write_image(other, variant, "p01", 12, num_steps=8)
        write_comparison(other, variant, "p01", num_steps=8)
    message = refusal(other)
    assert "do not belong together" in message
    assert "'num_steps': 8" in message


def test_statistics_of_another_model_are_refused(other, monkeypatch):
    monkeypatch.setattr(run_folder, "MODEL", {**MODEL, "identity": "4567"})
    run_folder.write_activations(other)
    shutil.rmtree(other / "evaluation")
    shutil.rmtree(other / "compare")
    with pytest.raises(UserError, match=r'model\.identity is "4567" and not "0123"') as error:
        report.collect(other, Shown("adaround", [], [], [], ["rtn", "adaround"]))
    assert "activations/stats/0000.safetensors does not belong to" in str(error.value)


def test_statistics_of_other_images_are_refused(other):
    run_folder.write_calibration(other, num_steps=20)
    message = refusal(other)
    assert "was made from another" in message
    assert "calibration/0000.safetensors than the one that is there" in message


def test_a_summary_of_other_statistics_is_refused(other):
    with made(other, "merge_statistics", "activations/stats/0000.safetensors"):
        run_folder.tensors(
            other / "activations" / "layer_statistics.safetensors", run_folder.STATISTICS, 2.0
        )
    assert "layer_statistics.safetensors" in refusal(other)


def test_a_plot_of_something_else_is_refused(other):
    with made(other, "visualize_activations", "activations/stats/0000.safetensors"):
        picture(other / "activations" / "plots" / "absmax.png", 99, PLOT)
    report.collect(other, ALL)  # what it was drawn from is there
    run_folder.write_activations(other)
    (other / "activations/plots/absmax.png").write_bytes(b"")
    assert "absmax.png is damaged" in refusal(other)


@pytest.mark.parametrize("change", ["", "variant\n", "header", "number", "row", "baseline", "more"])
def test_an_emptied_or_foreign_table_is_refused(other, change):
    file = other / "evaluation" / "summary.csv"
    lines = file.read_text().splitlines(keepends=True)
    changed = {
        "header": lines[:1],
        "row": lines[:-1],
        "number": [*lines[:-1], lines[-1].replace(",4,", ",5,", 1)],
        "baseline": [line.replace("rtn-weights,0.", "noise-floor,0.") for line in lines],
        "more": [*lines, lines[-1]],
    }
    file.write_text("".join(changed.get(change, [change])))
    assert file.read_text().splitlines(keepends=True) != lines
    assert "summary.csv is not the table of the evaluations" in refusal(other)
