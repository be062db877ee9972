"""Figures of faults: counted, printed, and kept as JSON and Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Count:
    """Cases of one sort: how many there were, and which ended badly.

    Attributes:
        sort: what they have in common.
        cases: how many.
        failures: case -> what was wrong.
        notes: other figures, by name.
        skipped: why nothing was tried.
    """

    sort: str
    cases: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)
    skipped: str = ""

    def add(self, case: str, problems: Sequence[str]) -> None:
        self.cases += 1
        if problems:
            self.failures[f"{self.cases}: {case}"] = "; ".join(problems)
            print(f"  FAULT in {case}: {'; '.join(problems)}", flush=True)

    def add_cuts(
        self, name: str, cuts: int, files: int, lost: Sequence[str], resumed: int,
        problems: Sequence[str],
    ) -> None:  # fmt: skip
        """Power cuts of one run, all of which are cases."""
        self.cases += cuts
        self.notes["files looked for"] += files
        self.notes["files lost"] += len(lost)
        self.notes["runs resumed"] += resumed
        for problem in (*lost, *problems):
            self.failures[f"{name}: {problem}"] = problem
            print(f"  FAULT {name}: {problem}", flush=True)

    @property
    def good(self) -> int:
        return self.cases - len(self.failures)

    def document(self) -> dict[str, Any]:
        return {
            "sort": self.sort,
            "cases": self.cases,
            "good": self.good,
            "notes": dict(self.notes),
            "failures": self.failures,
        }
