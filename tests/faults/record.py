"""Figures of faults: counted, printed, and kept as JSON and Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Count:
    """Cases of one sort: how many there were, and which ended badly.

    Attributes:
        sort: what they have in common.
        part: "kills", "power", "corruption", "input", or "" for what is only a check.
        cases: how many.
        failures: case -> what was wrong.
        notes: other figures, by name.
        skipped: why nothing was tried.
    """

    sort: str
    part: str = ""
    cases: int = 0
    failures: dict[str, list[str]] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)
    skipped: str = ""

    def add(self, case: str, problems: Sequence[str]) -> None:
        """Counts a case; a fault is printed at once."""
        self.cases += 1
        if problems:
            self.failures[f"{self.cases}: {case}"] = list(problems)
            print(f"  FAULT in {case}: {'; '.join(problems)}", flush=True)

    @property
    def good(self) -> int:
        return self.cases - len(self.failures)

    def line(self) -> str:
        if self.skipped:
            return f"{self.sort}: not run, {self.skipped}"
        notes = "".join(f", {number} {name}" for name, number in self.notes.items())
        return f"{self.sort}: {self.good} of {self.cases}{notes}"

    def document(self) -> dict[str, Any]:
        return {
            "sort": self.sort,
            "part": self.part,
            "cases": self.cases,
            "good": self.good,
            "notes": dict(self.notes),
            "failures": self.failures,
            **({"not run": self.skipped} if self.skipped else {}),
        }

    @staticmethod
    def of(document: Mapping[str, Any]) -> Count:
        """What `document` was made of."""
        return Count(
            document["sort"], document["part"], document["cases"], document["failures"],
            Counter(document["notes"]), document.get("not run", ""),
        )  # fmt: skip


def _of(counts: Sequence[Count], part: str) -> str:
    chosen = [count for count in counts if count.part == part]
    if not chosen:
        return "not run"
    return f"{sum(c.good for c in chosen)} of {sum(c.cases for c in chosen)}"


def totals(counts: Sequence[Count]) -> dict[str, str]:
    """The figures that are printed at the end."""
    problems = [
        problem for count in counts for found in count.failures.values() for problem in found
    ]
    cuts = [count for count in counts if count.part == "power"]
    notes: Counter[str] = sum((count.notes for count in counts), Counter())
    skipped = "".join(f"not run: {count.skipped}" for count in cuts if count.skipped)
    return {
        "kills survived": _of(counts, "kills"),
        "files that differ": str(sum(p.endswith((" differs", " is missing")) for p in problems)),
        "leftovers": str(sum(p.endswith(" is left over") for p in problems)),
        "finished files made again": str(sum(p.endswith(" made again") for p in problems)),
        "corruptions told or harmless": _of(counts, "corruption"),
        "bad input told": _of(counts, "input"),
        "tracebacks": str(sum("a traceback" in problem for problem in problems)),
        "power cuts": skipped or str(notes["power cuts"]),
        "finished files lost": skipped or f"{notes['files lost']} of {notes['files looked for']}",
        "finished files lost without syncs": skipped
        or f"{notes['files lost without syncs']} of {notes['files looked for without syncs']}",
    }


def renewed(record: Mapping[str, Any], name: str, part: Mapping[str, Any]) -> dict[str, Any]:
    """A record with one of its parts made anew, and its totals.

    Args:
        part: with "date", "commit", "device", "cores", "seconds", "jobs" and "counts".
    """
    parts = {**record.get("parts", {}), name: part}
    counts = [Count.of(one) for each in parts.values() for one in each["counts"]]
    return {"command": "make faults", "totals": totals(counts), "parts": parts}


def markdown(record: Mapping[str, Any]) -> str:
    """The record for people."""
    parts = record["parts"].values()
    jobs = ", ".join(str(number) for number in sorted({part["jobs"] for part in parts}))
    lines = [
        "# Kills, power cuts, damaged files, bad input",
        "",
        f"`{record['command']}` (`benchmarks/faults.py`; with `FAULTS_ARGS='--parts kills'` it "
        f"renews a part of this record). A run of {jobs} jobs with a small random model, done once "
        "undisturbed; what came of every fault was compared with it byte by byte.",
        "",
        "| part | date | commit | minutes | machine |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {name} | {part['date']} | {part['commit']} | {part['seconds'] / 60:.0f} | "
            f"{part['device']}, {part['cores']} cores |"
            for name, part in record["parts"].items()
        ),
        "",
        "| figure | |",
        "| --- | --- |",
        *(f"| {name} | {figure} |" for name, figure in record["totals"].items()),
        "",
        "## Cases",
        "",
        "| cases | good | of | also |",
        "| --- | --- | --- | --- |",
    ]
    counts = [count for part in parts for count in part["counts"]]
    for count in counts:
        also = ", ".join(f"{number} {name}" for name, number in count["notes"].items())
        if "not run" in count:
            also = f"not run: {count['not run']}"
        lines.append(f"| {count['sort']} | {count['good']} | {count['cases']} | {also} |")
    failures = [
        f"* {count['sort']}, {case}: {'; '.join(problems)}"
        for count in counts
        for case, problems in count["failures"].items()
    ]
    if failures:
        lines += ["", "## What ended badly", "", *failures]
    return "\n".join(lines) + "\n"
