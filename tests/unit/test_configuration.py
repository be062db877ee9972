"""Configurations that mean something: types of numbers, defaults, and counts that follow others."""

from __future__ import annotations

import shlex
import subprocess

import pytest
import yaml
from snakemake.utils import validate
from snakemake_interface_executor_plugins.utils import format_cli_arg

from ditquant.errors import UserError
from ditquant.planning import configuration, settings
from ditquant.planning.command_line import check_options, take_typed_text
from ditquant.planning.config_files import check_file, main
from ditquant.planning.recipes import ROUNDINGS
from support.planned import ROOT, complete, plan, schema

PROMPTS = [
    "a star #1 of 3",
    "a: b",
    "[x]",
    "{x}",
    "123",
    "1e3",
    "yes",
    "True",
    "nan",
    '"a" and b',
    'it\'s a "red" star',
    "costs $5 `date` \\n !1 % ~",
    "two\nlines\tand a tab ",
    "*star",
    "&star",
    "!star",
    "- a star",
    "prompt=a",
    "ein roter Stern äöü 赤い星 🟥",
]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_is_drawn_as_it_was_typed(prompt):
    config, planned = plan(typed=("num_images=2", f"prompt={prompt}"))
    assert config["prompt"] == prompt
    assert planned.prompts["own"].prompts == (prompt,)
    assert config["num_images"] == 2


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_submitted_job_gets_the_prompt_unchanged(prompt):
    """Snakemake writes the entries into a command, and a shell takes it apart."""
    entries = ["seed=3", f"prompt={prompt}"]
    take_typed_text({}, entries, is_spawned=False)
    command = format_cli_arg("--config", entries)
    script = f'printf "%s\\0" {command}'
    words = subprocess.run(["bash", "-c", script], capture_output=True, check=True).stdout
    handed_on = words.decode().split("\0")[1:-1]
    assert handed_on == shlex.split(command)[1:]
    config: dict = {}
    take_typed_text(config, handed_on, is_spawned=True)
    assert config == {"prompt": prompt}


def test_names_are_taken_as_they_were_typed():
    config, _ = plan(typed=("run=2026", "recipe=rtn"))
    assert (config["run"], config["recipe"]) == ("2026", "rtn")
    assert plan(typed=("prompt=",))[0]["prompt"] is None


def test_an_option_that_stands_twice_is_told():
    check_options(["snakemake", "--config", "a=1", "b=2", "--configfile", "x", "y"])
    for words in (["--config", "a=1", "-C", "b=2"], ["--configfile=x", "--configfiles", "y"]):
        with pytest.raises(UserError, match="Snakemake uses only the last"):
            check_options(["snakemake", *words])


def types(value: object) -> object:
    """Types in the place of values."""
    if isinstance(value, dict):
        return {key: types(inner) for key, inner in value.items()}
    return [types(inner) for inner in value] if isinstance(value, list) else type(value).__name__


def test_numbers_have_the_types_of_the_schema_however_they_are_written():
    written = {
        "num_images": 4.0,
        "num_steps": 6.0,
        "calibration": {"cfg_weight": 4, "image_size": [64.0, 64]},
        "weights": {"stride": 2.0},
        "activations": {
            "channel_group": 64.0,
            "tiers": {"average_bits": 6, "linear": [4, 9], "post_gelu": [2.5, 3]},
            "variants": {"a6": {"bits": 6.0, "channel_group": 32.0}},
        },
        "recipes": {
            "x": {
                "rounding": "adaround",
                "bits": 4.0,
                "rows_at_once": 2.0,
                "warmup": 0,
                "layers": {"*": 3.0, "mm00.*": "full"},
            }
        },
    }
    plain = yaml.safe_load(yaml.safe_dump(written).replace(".0\n", "\n"))
    left, right = complete(written), complete(plain)
    assert left == right
    assert types(left) == types(right)
    assert isinstance(left["calibration"]["cfg_weight"], float)
    assert left["calibration"]["image_size"] == [64, 64]
    assert types(left["recipes"]["x"]["layers"]) == {"*": "int", "mm00.*": "str"}
    typed, _ = plan(typed=("num_images=3.0", "seed=1e3"))
    assert types([typed["num_images"], typed["seed"]]) == ["int", "int"]


def test_defaults_are_those_that_snakemake_fills_in():
    ours: dict = {}
    configuration.complete(ours, schema())
    theirs: dict = {}
    validate(theirs, str(ROOT / "config" / "schema.yaml"))
    for track in ("weights", "activations"):
        assert theirs[track]["num_images"] is None
        theirs[track]["num_images"] = ours[track]["num_images"]
    for key in ("tiers", "clips"):
        theirs["activations"][key]["images"] = ours["activations"][key]["images"]
    # Snakemake fills in what a recipe does not read, too.
    for name, options in theirs["recipes"].items():
        theirs["recipes"][name] = ROUNDINGS[options["rounding"]].read_of(options)
    assert ours == theirs


def counts(config: dict) -> tuple[int, ...]:
    activations = config["activations"]
    tracks = (config["weights"]["num_images"], activations["num_images"])
    return (*tracks, activations["tiers"]["images"], activations["clips"]["images"])


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (10, (10, 5, 2, 4)),
        (1, (1, 1, 1, 1)),
        (2, (2, 1, 1, 2)),
        (3, (3, 2, 2, 3)),
        (64, (32, 32, 2, 4)),
        (128, (32, 32, 2, 4)),
    ],
)
def test_tracks_follow_the_number_of_images_within_a_bound(images, expected):
    config, _ = plan(typed=(f"num_images={images}",))
    settings.check_counts(config)
    assert counts(config) == expected
    assert configuration.MOST_IMAGES == 32, "the schema and the README say 32"


def test_the_long_run_of_sd3_medium_uses_more_images():
    config, _ = plan(ROOT / "config" / "sd3-medium.yaml", ("num_images=1000",))
    assert counts(config)[:2] == (32, 32)
    assert counts(plan(ROOT / "config" / "sd3-medium.yaml")[0])[:2] == (10, 5)


def test_counts_that_are_set_stay():
    own = {"weights": {"num_images": 3}, "activations": {"num_images": 7, "tiers": {"images": 6}}}
    assert counts(complete({"num_images": 50, **own})) == (3, 7, 6, 4)


def test_tiers_that_measure_nothing_may_ask_for_any_number_of_images():
    settings.check_counts(complete({"activations": {"tiers": {"mode": "threshold", "images": 99}}}))
    settings.check_counts(complete({"activations": {"clips": {"images": 99}}}))


def test_the_log_says_how_many_images_each_track_uses():
    assert configuration.summary(complete()) == (
        "10 calibration images: 10 for the weight track, 5 for the activation track."
    )
    assert configuration.summary(complete({"num_images": 100})) == (
        "100 calibration images: 32 for the weight track, 32 for the activation track "
        "(weights.num_images and activations.num_images ask for more)."
    )
    assert configuration.summary(complete({"num_images": 1})).startswith("1 calibration image: 1")


@pytest.mark.parametrize("name", sorted((ROOT / "config").glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_files_pass_the_check_of_files(name):
    check_file(name)


@pytest.mark.parametrize(
    "text",
    [
        'prompt: "a star #1" # a comment\nnum_images: 1_000 # as well\n',
        "x: &x {a: 1}\ny: {<<: *x, a: 2}\nz: {<<: [*x, *x]}\n",
        '{"run": "a",\n\t"num_images": 3}',
        "prompt: |\n  a star #1\n",
        "\ufeffrun: demo\r\nseed: 0\r\n",
        "seed: 0\ncalibration: {cfg_weight: 0.5}\n",
    ],
)
def test_files_that_mean_what_they_say(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_bytes(text.encode())
    check_file(path)


def test_make_run_asks_before_snakemake_does(tmp_path, capsys):
    (tmp_path / "c.yaml").write_bytes(b"weights:\n\tstride: 2\n")
    assert main([str(tmp_path / "c.yaml")]) == 2
    assert "line 2: a tab, where YAML wants spaces." in capsys.readouterr().err
    assert main([str(ROOT / "config" / "sd3-medium.yaml")]) == 0
