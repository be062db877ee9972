"""A code digest follows what a result depends on, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ditquant.planning import digest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def scripts(tmp_path):
    copy = tmp_path / "scripts"
    shutil.copytree(SCRIPTS, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def digest_of(scripts: Path, name: str) -> str:
    for cached in (digest.code_digest, digest._parsed, digest._modules):
        cached.cache_clear()
    return digest.code_digest(scripts / name)


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text("utf-8") + text, "utf-8")


def names(scripts: Path, name: str) -> set[str]:
    return {str(p.relative_to(scripts)) for p in digest.code_files(scripts / name)}


def test_a_module_counts_where_it_is_imported_and_nowhere_else(scripts):
    stages = ("generate_calibration.py", "encode_prompts.py", "list_calibration.py")
    before = {stage: digest_of(scripts, stage) for stage in stages}
    append(scripts / "ditquant" / "network" / "sampling.py", "\nEXTRA = 1\n")
    after = {stage: digest_of(scripts, stage) for stage in stages}
    assert after["generate_calibration.py"] != before["generate_calibration.py"]
    assert after["encode_prompts.py"] == before["encode_prompts.py"]
    assert after["list_calibration.py"] == before["list_calibration.py"]


def test_indirect_and_relative_imports_are_followed(scripts):
    files = names(scripts, "generate_calibration.py")
    assert {
        "generate_calibration.py",
        "ditquant/network/sampling.py",
        "ditquant/network/blocks.py",  # through sampling
        "ditquant/backend/diffusionkit.py",  # through the backend's __init__
        "ditquant/models/load.py",
    } <= files
    assert "ditquant/models/text.py" not in files


def test_the_judge_of_the_demo_model_counts_where_pictures_are_judged(scripts):
    files = names(scripts, "evaluate_variant.py")
    assert {"demo_model/judge.py", "demo_model/matching.py"} <= files
    assert "demo_model/training.py" not in files


def test_comments_docstrings_and_messages_change_nothing(scripts):
    stage = "generate_calibration.py"
    before = digest_of(scripts, stage)
    sampling = scripts / "ditquant" / "network" / "sampling.py"
    text = sampling.read_text("utf-8").replace('"""Sigma schedule,', '"""The sigma schedule,')
    sampling.write_text("# a comment\n" + text, "utf-8")
    append(scripts / "ditquant" / "progress.py", "\nEXTRA = 1\n")
    append(scripts / "ditquant" / "job.py", "\nEXTRA = 1\n")
    assert digest_of(scripts, stage) == before


def test_the_script_itself_counts(scripts):
    before = digest_of(scripts, "list_calibration.py")
    append(scripts / "list_calibration.py", "\nEXTRA = 1\n")
    assert digest_of(scripts, "list_calibration.py") != before


def test_a_module_that_is_left_out_counts_no_more_with_what_only_it_imports(scripts):
    def digest_without(names: tuple[str, ...]) -> str:
        digest.code_digest.cache_clear()
        digest._parsed.cache_clear()
        return digest.code_digest(scripts / "generate_image.py", names)

    unused = ("checkpoint", "packed_blocks", "simulate", "quant_config")
    before = {names: digest_without(names) for names in ((), unused)}
    # Simulation and its configuration import the one, packed layers the other.
    for name in ("activations/sigma_lookup.py", "checkpoints/quantized.py"):
        append(scripts / "ditquant" / name, "\nEXTRA = 1\n")
        assert digest_without(()) != before[()]
        assert digest_without(unused) == before[unused]
    append(scripts / "ditquant" / "network" / "sampling.py", "\nEXTRA = 1\n")
    assert digest_without(unused) != before[unused]


@pytest.mark.parametrize("name", ["simulation", "imulate", "diffusionkit"])
def test_a_name_that_is_no_module_or_several_is_refused(name):
    with pytest.raises(ValueError, match=f"modules of .* are called {name}, not one"):
        digest.code_files(SCRIPTS / "generate_image.py", (name,))


def test_the_report_depends_on_all_that_decides_its_text(scripts):
    report, others = "render_report.py", ("plot_history.py", "generate_image.py")
    before = {name: digest_of(scripts, name) for name in (report, *others)}
    for place in ("report/templates/report.css", "report/templates/report.html.j2"):
        append(scripts / "ditquant" / place, "\n")
        changed = digest_of(scripts, report)
        assert changed != before[report]
        before[report] = changed
    assert {name: digest_of(scripts, name) for name in others} == {
        name: before[name] for name in others
    }
    assert {
        f"ditquant/{place}.py"
        for place in ("readable", "plots/charts", "plots/activation_names", "planning/recipes")
    } <= names(scripts, report)
