"""`make real-size`: the model that it writes, its driver, and its record."""

from __future__ import annotations

import json
import subprocess
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
    read = benchmark("records").read_configuration
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
    driver.note_run(note, 10.5)
    driver.note_run(note, 5.5)
    found = json.loads(note.read_text())
    assert (found["calls"], found["seconds"]) == (2, 16.0)


# ------------------------------------------------------------------------------------ the record


def row(block, recipe, dtype, ratio, rtn=0.01):
    return {
        "block": block, "recipe": recipe, "dtype": dtype, "rtn": rtn, "result": rtn * ratio,
        "kept": recipe, "kept_error": rtn * ratio, "ratio": ratio, "binary_share": None,
        "seconds": 1.0,
    }  # fmt: skip


ROWS = [
    row("mm00", "rtn", "float16", 1.0, 0.0101),
    row("mm00", "adaround", "float16", 0.515),
    row("mm01", "adaround", "float16", 0.59),
    row("mm00", "rtn", "float32", 1.0),
    row("mm00", "adaround", "float32", 0.5),
    {"block": "mm01", "recipe": "adaround", "dtype": "float32", "error": "diverged"},
]


def test_blocks_are_told_by_block(benchmark):
    # Ratios of rtn would all be 1: its errors are told.
    assert benchmark("real_size_record").by_block(ROWS) == {
        "mm00": {
            "rtn_float16": 0.0101, "adaround_float16": 0.515,
            "rtn_float32": 0.01, "adaround_float32": 0.5,
        },
        "mm01": {"adaround_float16": 0.59},
    }  # fmt: skip


def test_recipes_are_told_with_what_the_dtypes_differ(benchmark):
    found = benchmark("real_size_record").by_recipe(ROWS)
    assert found["rtn"]["largest_difference"] == pytest.approx(0.01)
    adaround = found["adaround"]
    assert adaround["failed"] == 1
    assert (adaround["float16_blocks"], adaround["float32_blocks"]) == (2, 1)
    assert adaround["float16_largest"] == 0.59
    assert adaround["float16_median"] == pytest.approx(0.5525)
    # Of the one block that has both.
    assert adaround["largest_difference"] == pytest.approx(0.03)
    assert adaround["mean_difference"] == pytest.approx(0.03)


def test_a_run_without_its_report_has_no_record(benchmark, tmp_path):
    with pytest.raises(FileNotFoundError, match="did not end"):
        benchmark("real_size_record").gather(tmp_path)
