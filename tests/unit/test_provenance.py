"""Artifacts tell what they were made from, and what does not belong together is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from ditquant.artifacts import (
    load_metadata,
    read_file,
    read_json,
    save_tensors,
    write_file,
    write_json,
)
from ditquant.backend import mx
from ditquant.errors import UserError
from ditquant.job import job
from ditquant.provenance import (
    Lineage,
    check_alike,
    check_inputs,
    check_options,
    made_by,
    making,
)
from ditquant.seals import recorded_digest

MODEL = {"name": "demo", "checkpoint": "/home/somebody/model", "dtype": "float32", "identity": "a"}
PARAMS = {"model": MODEL, "stride": 2, "code": "0123"}


@pytest.fixture
def run(tmp_path) -> Path:
    folder = tmp_path / "results" / "demo"
    folder.mkdir(parents=True)
    return folder


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, format="PNG")
    return buffer.getvalue()


def write(path: Path, value: float = 1.0) -> Path:
    """An artifact of the kind that the suffix says."""
    if path.suffix == ".safetensors":
        save_tensors(path, {"a": mx.array([value])}, "ditquant.block_io", {"note": "own"})
    elif path.suffix == ".json":
        write_json(path, "ditquant.timing", {"value": value})
    else:
        data = {".png": png(), ".svg": b"<svg/>", ".gif": b"GIF89a;", ".html": b"<p>"}[path.suffix]
        write_file(path, data, "ditquant.plot")
    return path


def chain(run: Path, value: float = 1.0) -> tuple[Path, Path, Path]:
    """A stream, a block made from it and an evaluation of the block."""
    stream, block, evaluation = run / "a.safetensors", run / "b.safetensors", run / "c.json"
    with making("stream", PARAMS, []):
        write(stream, value)
    with making("block", {"model": MODEL, "recipe": {"bits": 4}}, [stream]):
        write(block, value)
    with making("evaluation", {"plan": {"num_steps": 8}}, [block]):
        write(evaluation, value)
    return stream, block, evaluation


@pytest.mark.parametrize("suffix", [".safetensors", ".json", ".png", ".svg", ".gif"])
def test_every_kind_of_artifact_tells_its_rule_and_sources(run, suffix):
    source = write(run / "streams" / "0000.safetensors")
    with making("a_rule", PARAMS, [source]):
        made = made_by(write(run / f"made{suffix}"))
    assert made["rule"] == "a_rule"
    assert made["sources"] == {"streams/0000.safetensors": recorded_digest(source)}
    pictures = suffix in (".png", ".svg", ".gif")
    # No digest of code, and no path of a machine.
    model = {"name": "demo", "dtype": "float32", "identity": "a"}
    assert made["options"] == ({} if pictures else {"model": model, "stride": 2})


def test_readers_get_what_was_written(run):
    with making("a_rule", PARAMS, []):
        write(run / "a.safetensors"), write(run / "a.svg"), write(run / "a.png")
    assert load_metadata(run / "a.safetensors", "ditquant.block_io") == {
        "format": "mlx",
        "note": "own",
    }
    assert read_file(run / "a.svg", "ditquant.plot").startswith(b"<svg/>")
    with Image.open(run / "a.png") as picture:
        picture.load()


def test_shards_of_prompts_and_times_are_no_sources(run):
    inputs = [write(run / name) for name in ("conditioning/p.safetensors", "benchmarks/e.json")]
    table = run / "table.csv"
    table.write_text("a\n1\n")
    with making("a_rule", {}, [*inputs, table, run.parent.parent / "elsewhere.csv"]):
        assert made_by(write(run / "made.json"))["sources"] == {}


def test_the_same_job_writes_the_same_bytes(run):
    contents = []
    for _ in range(2):
        with making("a_rule", {"b": 1, "a": 2}, [write(run / "y.json"), write(run / "x.json")]):
            contents.append(
                [write(run / name).read_bytes() for name in ("z.safetensors", "z.json")]
            )
    assert contents[0] == contents[1]


@pytest.mark.parametrize("suffix", [".safetensors", ".json", ".png"])
def test_what_was_written_by_no_job_is_refused(run, suffix):
    with pytest.raises(UserError, match="does not say what it was made from"):
        made_by(write(run / f"a{suffix}"))


@pytest.mark.parametrize("name", ["b.safetensors", "c.json", "d.svg"])
def test_damaged_and_exchanged_files_are_told_as_such(run, name):
    chain(run)
    with making("a_rule", {}, [run / "c.json"]):
        write(run / "d.svg")
    path = run / name
    exchanged = path.rename(run / f"moved{path.suffix}")
    with pytest.raises(UserError, match=f"was written as {name} and is in the wrong place"):
        made_by(exchanged)
    data = exchanged.read_bytes()
    path.write_bytes(data.replace(b'"rule', b'"ruse'))
    with pytest.raises(UserError, match=r"is damaged \(its digest does not match"):
        made_by(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="is damaged"):
        made_by(path)
    path.unlink()
    with pytest.raises(UserError, match="There is no file"):
        made_by(path)


def test_files_of_one_piece_pass(run):
    files = chain(run)
    together = Lineage(run)
    assert together.check(files[-1])["rule"] == "evaluation"
    assert together.model == {"name": "demo", "dtype": "float32", "identity": "a"}
    files[0].unlink()  # the streams may be deleted when the blocks are done
    Lineage(run).check(files[-1])


def test_a_source_exchanged_far_back_is_named(run):
    stream, block, evaluation = chain(run)
    with making("stream", PARAMS, []):
        write(stream, 2.0)
    with pytest.raises(UserError) as error:
        Lineage(run).check(evaluation)
    assert f"{block} was made from another {stream} than the one that is there" in str(error.value)


def test_another_model_is_named(run):
    files = chain(run)
    other = {**MODEL, "identity": "b"}
    with pytest.raises(UserError, match=r'model\.identity is "a" and not "b"'):
        check_inputs(files, other)
    check_inputs(files, MODEL)
    check_inputs(files, {**MODEL, "checkpoint": "/elsewhere/model"})
    check_inputs(files, None)


def test_options_are_compared_leaf_by_leaf(run):
    recipe = {"bits": 4, "rounding": "adaround", "layers": {"*.fc2": 8}}
    with making("a_rule", {"recipe": recipe}, []):
        path = write(run / "block.json")
    check_options(path, "recipe fine", recipe=recipe)
    with pytest.raises(UserError) as error:
        check_options(path, "recipe fine", recipe={**recipe, "bits": 3, "layers": {"*.fc2": 4}})
    assert (
        f"{path} does not belong to recipe fine: recipe.bits is 4 and not 3; "
        "recipe.layers.*.fc2 is 8 and not 4: delete it and run the same command again."
    ) in str(error.value)


def test_files_of_different_options_do_not_go_together(run):
    paths = []
    for number, stride in enumerate((2, 2, 3)):
        with making("a_rule", {"stride": stride, "seed": number}, []):
            paths.append(write(run / f"{number}.json"))
    check_alike(paths[:2], "stride")
    check_alike([], "stride")
    with pytest.raises(UserError, match="stride is 3 and not 2") as error:
        check_alike(paths, "stride")
    assert str(paths[0]) in str(error.value)
    assert str(paths[2]) in str(error.value)


class Named(list):
    """Snakemake's lists with names."""

    def __init__(self, **named):
        super().__init__(named.values())
        self._named = named

    def items(self):
        return self._named.items()


class Job:
    """What Snakemake gives to a script."""

    rule, log = "a_rule", ()

    def __init__(self, inputs: list[Path], output: Path, params: dict):
        self.input = Named(**{f"i{number}": str(path) for number, path in enumerate(inputs)})
        self.output, self.params = Named(output=str(output)), Named(**params)


def test_a_job_signs_what_it_writes_and_leaves_a_record(run, monkeypatch):
    monkeypatch.chdir(run.parents[1])
    *_, evaluation = chain(Path("results/demo"))
    output = Path("results/demo/out/d.json")
    with job(Job([evaluation], output, {"plan": 3, "code": "01"})):
        write(output)
    assert made_by(output) == {
        "rule": "a_rule",
        "options": {"plan": 3},
        "sources": {"c.json": recorded_digest(evaluation)},
    }
    record = json.loads(Path("results/demo/.records/out/d.json.json").read_text())
    assert record["params"] == ["'01'", "3"]
    assert record["inputs"] == [["results/demo/c.json", recorded_digest(evaluation)]]
    assert record["outputs"]["results/demo/out/d.json"]["digest"] == recorded_digest(output)
    assert "made_by" not in read_json(write(run / "later.json"), "ditquant.timing")


def test_a_job_does_not_start_on_files_that_do_not_belong_together(run, monkeypatch, capsys):
    monkeypatch.chdir(run.parents[1])
    folder = Path("results/demo")
    stream, _, evaluation = chain(folder)
    with making("stream", PARAMS, []):
        write(stream, 2.0)
    started = []
    with pytest.raises(SystemExit), job(Job([evaluation], folder / "d.json", {})):
        started.append(True)
    assert not started
    assert "was made from another results/demo/a.safetensors" in capsys.readouterr().err
    assert not (folder / ".records").exists()
