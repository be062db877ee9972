"""Tables and figures of the documents are those of the records; another number is found."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
MOST_BYTES, MOST_LINES = 300_000, 1000


@pytest.fixture(scope="module")
def scripts():
    """records.py and render.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("records"), importlib.import_module("render")


@pytest.fixture(scope="module")
def records() -> dict[str, dict]:
    """The records that have sections with rows."""
    found = {path.stem: json.loads(path.read_text("utf-8")) for path in RESULTS.glob("*.json")}
    return {
        name: record
        for name, record in found.items()
        if all(isinstance(s, dict) and "rows" in s for s in record.values())
    }


# ---------------------------------------------------------------------------- what is committed


def test_records_are_small():
    files = [path for path in RESULTS.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES
    long = [path.name for path in files if path.read_text("utf-8").count("\n") > MOST_LINES]
    assert long == []


def test_records_are_as_they_are_written(scripts, records):
    assert len(records) > 5
    for name, record in records.items():
        assert (RESULTS / f"{name}.json").read_text("utf-8") == scripts[0].as_text(record), name


def test_documents_say_what_the_records_say(scripts):
    _, render = scripts
    quotes = render.read_quotes()
    names = {str(path.relative_to(ROOT)): path for path in render.documents()}
    assert set(quotes) <= set(names)
    found = {
        name: render.problems(path.read_text("utf-8"), quotes.get(name, render.Quoted()))
        for name, path in names.items()
    }
    assert {name: problems for name, problems in found.items() if problems} == {}


def test_every_section_is_shown_in_a_table(scripts, records):
    _, render = scripts
    text = "".join(path.read_text("utf-8") for path in render.documents())
    shown = set(re.findall(r"<!-- table (\S+)", text))
    assert {f"{name}/{section}" for name, record in records.items() for section in record} <= shown


def test_what_made_a_record_exists(records):
    for record in records.values():
        for section in record.values():
            files = re.findall(r"\b(?:benchmarks|config)/[\w./-]+", section["command"])
            assert [file for file in files if not (ROOT / file).is_file()] == []
            assert re.search(r"snakemake |make |benchmarks/", section["command"])


def other(figure: str) -> str:
    """The figure with its last digit changed."""
    at = max(i for i, letter in enumerate(figure) if letter.isdigit())
    return figure[:at] + str((int(figure[at]) + 1) % 10) + figure[at + 1 :]


def test_a_changed_figure_is_found_wherever_it_stands(scripts):
    """Every figure of the README and the pages of docs/, one after the other."""
    _, render = scripts
    quotes = render.read_quotes()
    for path in render.documents():
        if path.parent == RESULTS:
            continue
        text, quoted = path.read_text("utf-8"), quotes.get(str(path.relative_to(ROOT)))
        checked = quoted.tables if quoted else []
        for match in render.figures(text):
            line = text[: match.start()].rpartition("\n")[2]
            if checked and line.startswith("|"):
                continue
            changed = text[: match.start()] + other(match[0]) + text[match.end() :]
            assert render.problems(changed, quoted or render.Quoted()), (path.name, match[0], line)


# --------------------------------------------------------------------------------- the machinery


@pytest.fixture
def results(scripts, tmp_path):
    """A folder with the record `time`, section `cpu`."""
    rows = {
        "plain": {"ms": 20.0, "share": 0.93264},
        "fast": {"ms": 12.3456789, "ratio": 0.6172839, "note": "a | b"},
    }
    scripts[0].save_section(
        tmp_path / "time.json", "cpu", rows, command="benchmarks/time.py", machine="2 cores"
    )
    return tmp_path


def test_a_record_keeps_six_digits_and_a_line_a_row(results):
    lines = (results / "time.json").read_text().splitlines()
    assert '    "fast": {"ms": 12.3457, "ratio": 0.617284, "note": "a | b"}' in lines


def test_other_sections_of_a_record_stay(scripts, results):
    scripts[0].save_section(results / "time.json", "gpu", {"plain": {"ms": 1.0}}, command="x")
    scripts[0].save_section(results / "time.json", "cpu", {"plain": {"ms": 2.0}}, command="x")
    record = json.loads((results / "time.json").read_text())
    assert {name: section["rows"] for name, section in record.items()} == {
        "cpu": {"plain": {"ms": 2.0}}, "gpu": {"plain": {"ms": 1.0}},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{time/cpu/plain/ms:.1f} ms", "20.0 ms"),
        ("{time/cpu/plain/share:.1f %}", "93.3 %"),
        ("{min time/cpu/*/ms:.0f} to {max time/cpu/*/ms:.0f}", "12 to 20"),
        ("{time/cpu/fast/ms over time/cpu/plain/ms:.2f}", "0.62"),
        ("{time/cpu/plain/ms minus time/cpu/fast/ms:.1f}", "7.7"),
        ("{time/cpu/plain/ms over 60:.2f}", "0.33"),
        ("{count time/cpu/*/ms}", "2"),
    ],
)
def test_a_quotation_takes_its_figures_from_the_records(scripts, results, template, expected):
    assert scripts[1].quote(template, results) == expected


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{time/cpu/slow/ms}", "no such row or column"),
        ("{time/cpu/plain/seconds}", "no such row or column"),
        ("{time/gpu/plain/ms}", "has the sections cpu"),
        ("{times/cpu/plain/ms}", "there is no record times.json"),
        ("{time/cpu/*/ms}", "stands for 2 numbers"),
        ("{time/cpu/plain}", "not of the form"),
    ],
)
def test_a_path_that_leads_nowhere_is_told(scripts, results, template, told):
    quoted = scripts[1].Quoted(measured=[template])
    (problem,) = scripts[1].problems("nothing", quoted, results)
    assert told in problem


TABLE = """<!-- table time/cpu
| way | ms | ratio |
| `{row}` | {ms:.1f} | {ratio:.2f} |
-->
<!-- end -->
"""


def test_a_table_is_rendered_and_rendered_again(scripts, results):
    once = scripts[1].with_tables(TABLE, results)
    assert "| `plain` | 20.0 |  |\n| `fast` | 12.3 | 0.62 |\n" in once
    assert "`benchmarks/time.py`; 2 cores (" in once
    assert scripts[1].with_tables(once, results) == once
    assert scripts[1].problems(once, scripts[1].Quoted(), results) == []
    changed = once.replace("12.3", "12.4")
    assert "make tables" in scripts[1].problems(changed, scripts[1].Quoted(), results)[0]


def test_a_table_may_show_some_rows(scripts, results):
    shown = scripts[1].with_tables(TABLE.replace("time/cpu", "time/cpu f*"), results)
    assert "`fast`" in shown
    assert "`plain`" not in shown


@pytest.mark.parametrize(
    "change", [("{ms:.1f}", "{seconds:.1f}"), ("/cpu", "/gpu"), ("cpu", "cpu x*")]
)
def test_a_table_of_what_is_not_there_is_told(scripts, results, change):
    (problem, *_) = scripts[1].problems(TABLE.replace(*change), scripts[1].Quoted(), results)
    assert "cannot be rendered" in problem


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It takes 6 minutes, or 369 s, of 16 captions.", ["6 minutes", "369 s"]),
        ("93.3 % of them, 12% more, 0.5 times", ["93.3 %", "12%", "0.5 times"]),
        ("`0.5` and $0.5$ and [a](b-0.5.md) <!-- 0.5 -->", []),
        ("mlx 0.32.4, W4A8, 512 x 512, block 3", []),
        ("1.80 GB (0.36 to 0.91).", ["1.80 GB", "0.36", "0.91"]),
    ],
)
def test_figures_are_numbers_that_say_how_much(scripts, text, found):
    assert [match[0] for match in scripts[1].figures(text)] == found


def test_a_figure_without_a_source_is_told_with_its_line(scripts, results):
    text = "Nothing.\n\nIt takes 20.0 ms, or 12.3 ms."
    quoted = scripts[1].Quoted(measured=["takes {time/cpu/plain/ms:.1f} ms"])
    (problem,) = scripts[1].problems(text, quoted, results)
    assert problem.startswith("line 3: '12.3 ms' has no source")
    quoted = scripts[1].Quoted(measured=quoted.measured, given=["or 12.3 ms"])
    assert scripts[1].problems(text, quoted, results) == []


def test_what_is_given_must_stand_there(scripts, results):
    (problem,) = scripts[1].problems("Nothing.", scripts[1].Quoted(given=["3 GB"]), results)
    assert "3 GB" in problem
