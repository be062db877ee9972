"""What a script's `main` is called with, from what Snakemake puts into the script."""

from __future__ import annotations

import pytest
from snakemake.iocontainers import InputFiles, OutputFiles, Params, Wildcards

from ditquant.job import arguments, run_script
from ditquant.models.spec import Model


class Job:
    """Snakemake's object, as far as arguments are read from it."""

    rule = "draw"

    def __init__(self, **sections):
        self.config = {"model": {"checkpoint": MODEL["checkpoint"]}}
        for name, kind in (
            ("input", InputFiles), ("output", OutputFiles), ("params", Params),
            ("wildcards", Wildcards),
        ):  # fmt: skip
            setattr(self, name, kind(fromdict=sections.get(name, {})))


# A rule's parameters do not hold where a model's files lie.
IN_PARAMS = {"name": "demo", "dtype": "float32", "identity": "1"}
MODEL = {**IN_PARAMS, "checkpoint": "moved/sd3.safetensors"}


def main(*, shards: list[str], picture: str, model: Model, variant: str, extra: int = 3) -> None:
    raise AssertionError("never called")


def test_keywords_are_what_the_rule_calls_so():
    job = Job(
        input={"shards": ["a", "b"], "unused": "c"}, output={"picture": "p.png"},
        params={"model": IN_PARAMS}, wildcards={"variant": "full"},
    )  # fmt: skip
    found = arguments(main, job, {})
    assert found == {
        "shards": ["a", "b"], "picture": "p.png", "model": Model(**MODEL), "variant": "full",
    }  # fmt: skip
    assert type(found["shards"]) is list


def test_a_place_can_be_chosen():
    job = Job(
        input={"shards": ["a"], "model": "m.safetensors"}, output={"png": "p.png"},
        params={"model": IN_PARAMS, "variant": {"bits": 4}}, wildcards={"variant": "full"},
    )  # fmt: skip
    chosen = {"picture": "output.png", "model": "params.model", "variant": "wildcards.variant"}
    found = arguments(main, job, chosen)
    assert (found["picture"], found["variant"]) == ("p.png", "full")
    with pytest.raises(TypeError, match="rule draw has model in input and params"):
        arguments(main, job, {**chosen, "model": ".model"})
    with pytest.raises(TypeError, match="rule draw has no picture"):
        arguments(main, job, {**chosen, "picture": ".picture"})


def test_a_whole_section_can_be_chosen():
    def learn(*, files: dict[str, list[str]], params: dict[str, object]) -> None:
        raise AssertionError("never called")

    job = Job(
        input={"blocks": ["a", "b"], "statistics": "s"}, params={"seed": 3, "model": IN_PARAMS}
    )
    assert arguments(learn, job, {"files": "input", "params": "params"}) == {
        "files": {"blocks": ["a", "b"], "statistics": ["s"]},
        "params": {"seed": 3, "model": MODEL},
    }


def test_a_script_that_is_imported_runs_nothing():
    run_script(main, {"__name__": "draw"})
