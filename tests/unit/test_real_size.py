"""`make real-size`: the model that it writes, its driver, and the page of its record."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ditquant.backend import mx
from ditquant.models.load import load_text_encoder, load_vae_decoder
from ditquant.models.spec import read_spec
from ditquant.network.diffusionkit import load_network
from support.models import parameters, small_sd3

ROOT = Path(__file__).parents[2]


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a script of benchmarks/."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return __import__


# ------------------------------------------------------------------------------------- the model


@pytest.fixture
def written(benchmark, tmp_path, monkeypatch):
    """The model at a small size, and its specification, found as in an offline cache."""
    writer = benchmark("real_size_model")
    with small_sd3() as model_io:
        checkpoint = writer.write_model(tmp_path / "model", writer.SMALL_CLIPS)
        constants = __import__("huggingface_hub.constants", fromlist=["HF_HUB_OFFLINE"])
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        download, hub = model_io.hf_hub_download, str(tmp_path / "model" / "hub")
        monkeypatch.setattr(
            model_io, "hf_hub_download", lambda *a, **k: download(*a, cache_dir=hub, **k)
        )
        yield writer, read_spec("sd3-medium", str(checkpoint))


def test_the_model_loads_as_a_published_one(written):
    writer, spec = written
    model = load_network(spec, mx.float16)
    found = parameters(model)
    assert all(mx.all(mx.isfinite(tensor)).item() for tensor in found.values())
    biases = {name: bias for name, bias in found.items() if name.endswith("mlp.fc1.bias")}
    assert len(biases) == 2 * 24 - 1  # the last text block has no MLP
    for name, bias in biases.items():
        loud = mx.sum(bias > writer.LOUDNESS / 2).item()
        assert loud == bias.shape[0] // writer.LOUD_SHARE, name
    assert load_vae_decoder(spec, mx.float32)(mx.zeros((1, 4, 4, 16))).shape == (1, 32, 32, 3)
    for encoder, clip in zip(spec.text.encoders, writer.SMALL_CLIPS, strict=True):
        text, tokenizer = load_text_encoder(spec, encoder, mx.float32)
        assert tokenizer.max_length == clip.tokens
        assert text.token_embedding.weight.shape == (clip.vocabulary, clip.width)


def test_a_model_that_is_there_stays(written):
    writer, spec = written
    before = spec.checkpoint.stat().st_mtime_ns
    assert writer.write_model(spec.checkpoint.parent, writer.SMALL_CLIPS) == spec.checkpoint
    assert spec.checkpoint.stat().st_mtime_ns == before
    assert not list(spec.checkpoint.parent.glob(".*"))


def test_published_text_encoders_fill_what_the_model_reads(benchmark):
    writer = benchmark("real_size_model")
    pooled = writer.mmdit_config(writer.PUBLISHED["sd3-medium"]).pooled_text_embed_dim
    assert sum(clip.width for clip in writer.CLIPS) == pooled == 2048


# ------------------------------------------------------------------------------------ the driver


def test_the_configuration_is_the_published_one_with_less_of_it(benchmark):
    read = benchmark("in_process").read_configuration
    files = benchmark("real_size_record").CONFIGURATIONS
    published, ours = read(files[:1]), read(files)

    def changed(before, after, path=""):
        if not isinstance(before, dict):
            return [path] if before != after else []
        return [
            found for key in before for found in changed(before[key], after[key], f"{path}.{key}")
        ]

    assert set(changed(published, ours)) == {
        ".run", ".num_images", ".model.checkpoint", ".weights.num_images",
        ".activations.num_images", ".activations.clips.images", ".recipes.adaround.iterations",
        ".recipes.adaround.batch_size", ".recipes.adaround.learning_rate",
        ".recipes.best.iterations", ".recipes.best.batch_size", ".recipes.best.learning_rate",
        ".inference.prompts", ".evaluation.captions", ".evaluation.variants",
    }  # fmt: skip
    assert ours["model"]["dtype"] == "float16"
    assert ours["recipes"]["adaround"]["iterations"] == 200


def test_the_plan_reaches_report_and_exports(benchmark, tmp_path, monkeypatch):
    """A dry run of all steps before the blocks: the model that lies there is not written again."""
    driver = benchmark("real_size")
    monkeypatch.chdir(tmp_path)
    checkpoint = Path("results/real-size-model/sd3_medium.safetensors")
    checkpoint.parent.mkdir(parents=True)
    mx.save_safetensors(str(checkpoint), {"weight": mx.zeros((1,))})
    calls = []
    run = subprocess.run

    def record(command, **options):
        if "snakemake" not in command:
            return run(command, **options)
        calls.append(run(command, capture_output=True, text=True, **options))
        return calls[-1]

    monkeypatch.setattr(driver.subprocess, "run", record)
    assert driver.main(["model", "run", "--cpu", "--snakemake", "--dry-run --quiet host"]) == 0
    (done,) = calls
    table = dict(line.split() for line in done.stdout.splitlines() if len(line.split()) == 2)
    assert table["render_report"] == "1"
    assert table["export_weights"] == "2"
    assert table["optimize_block"] == "48"  # 24 blocks by rtn and by adaround
    assert table["collect_activations"] == table["cache_block_io"] == "2"
    note = json.loads(Path("results/real-size/benchmarks/real_size/run.json").read_text())
    assert note["calls"] == 1
    assert note["seconds"] > 0


def test_without_an_accelerator_it_says_so(benchmark, monkeypatch, capsys):
    driver = benchmark("real_size")
    monkeypatch.setattr(driver, "is_accelerated", lambda: False)
    with pytest.raises(SystemExit):
        driver.main([])
    assert "make real-size EXTRA=cuda13" in capsys.readouterr().err


def test_a_step_that_fails_ends_the_rest(benchmark, monkeypatch, tmp_path):
    driver = benchmark("real_size")
    monkeypatch.setattr(driver, "script", lambda name, *arguments: 3)
    monkeypatch.setattr(driver, "run_workflow", lambda *arguments: pytest.fail("it went on"))
    assert driver.main(["--cpu", "--json", str(tmp_path / "record.json")]) == 3
    assert not list(tmp_path.iterdir())


def test_seconds_of_a_run_that_was_stopped_are_added_up(benchmark, tmp_path):
    driver, note = benchmark("real_size"), tmp_path / "notes" / "run.json"
    driver.note_run(note, 10.5, "abc1234")
    driver.note_run(note, 5.5, "abc1234")
    found = json.loads(note.read_text())
    assert (found["calls"], found["seconds"]) == (2, 16.0)


# -------------------------------------------------------------------------------------- the page


def row(block, recipe, dtype, ratio, rtn=0.01):
    return {
        "block": block, "recipe": recipe, "dtype": dtype, "rtn": rtn, "result": rtn * ratio,
        "kept": recipe, "kept_error": rtn * ratio, "ratio": ratio, "binary_share": None,
        "seconds": 1.0,
    }  # fmt: skip


RECORD = {
    "run": {"date": "2026-11-29", "seconds": 447.0},
    "report": True,
    "exports": ["diffusionkit-4bit.safetensors"],
    "rules": [
        {
            "rule": "optimize_block adaround", "jobs": 24, "seconds_together": 288.0,
            "longest": 13.25, "start": 1.5, "loading": 0.25, "compiling": 2.0, "work": 8.25,
            "host_bytes": 2e9, "device_bytes": 5.5e9,
        },
        {
            "rule": "render_report", "jobs": 1, "seconds_together": 2.0, "longest": 2.0,
            "start": None, "loading": None, "compiling": None, "work": None,
            "host_bytes": None, "device_bytes": None,
        },
    ],
    "disk": [{"stage": "block_io", "files": 2, "bytes": 3_600_000_000}],
    "learned": [
        {
            "recipe": "adaround", "block": "mm00", "kept": "adaround", "ratio": 0.5,
            "binary_share": 0.97,
        }
    ],
    "blocks": {
        "devices": ["a GPU"],
        "tf32": False,
        "rows": [
            row("mm00", "rtn", "float16", 1.0, 0.0101),
            row("mm00", "adaround", "float16", 0.515),
            row("mm01", "adaround", "float16", 0.59),
            row("mm00", "rtn", "float32", 1.0),
            row("mm00", "adaround", "float32", 0.5),
        ],
    },
}  # fmt: skip


def test_the_page_has_every_number(benchmark):
    text = benchmark("real_size_page").render(RECORD)
    lines = text.splitlines()
    assert "* seconds: 447.0" in lines
    assert (
        "| optimize_block adaround | 24 | 288 | 13.2 | 1.5 | 0.2 | 2.0 | 8.2 | 2.00 | 5.50 |"
        in lines
    )
    assert "| render_report | 1 | 2 | 2.0 |  |  |  |  |  |  |" in lines
    assert "| `block_io` | 2 | 3.600 |" in lines
    # Ratios of rtn would all be 1: its errors are shown.
    assert "| mm00 | 0.01010 | 0.01000 | 1.00 | 0.515 | 0.500 | 3.00 |" in lines
    assert "| mm01 |  |  |  | 0.590 |  |  |" in lines
    assert "in full float32" in text


def test_promises_are_checked_on_what_was_measured(benchmark):
    page = benchmark("real_size_page")
    rtn, adaround = page.verdicts(RECORD)
    assert rtn["compared"] == adaround["compared"] == 1
    assert adaround["difference"] == pytest.approx(0.03)
    assert adaround["mean"] == pytest.approx(0.03)
    assert adaround["float16"] == {"blocks": 2, "median": pytest.approx(0.5525), "largest": 0.59}
    text = "\n".join(page.promise_lines(RECORD))
    assert "on every block, float16: kept (0.590 at most, 2 blocks)" in text
    assert (
        "`rtn`, float16 within 2 % of float32: kept (+1.00 % at most, +1.00 % on average, 1 blocks)"
        in text
    )
    assert "`adaround`, float16 within 2 % of float32: **missed** (+3.00 % at most" in text
    rows = [*RECORD["blocks"]["rows"], row("mm02", "adaround", "float16", 0.61)]
    worse = {**RECORD, "blocks": {**RECORD["blocks"], "rows": rows}, "report": False}
    text = "\n".join(page.promise_lines(worse))
    assert "on every block, float16: **missed** (0.610 at most, 3 blocks)" in text
    assert "**without a report**" in text


def test_the_page_of_a_record_stands_beside_it(tmp_path):
    path = tmp_path / "real_size.json"
    path.write_text(json.dumps({**RECORD, "blocks": {**RECORD["blocks"], "rows": []}}))
    command = [sys.executable, str(ROOT / "benchmarks" / "real_size_page.py"), str(path)]
    subprocess.run(command, check=True, capture_output=True)
    text = path.with_suffix(".md").read_text("utf-8")
    assert text.startswith("# The whole workflow at the size of Stable Diffusion 3 medium\n")
    assert "## Block errors" not in text
