"""QuantParams as people read them."""

from __future__ import annotations

import pytest

from ditquant.readable import fmt


@pytest.mark.parametrize(
    ("value", "how", "text"),
    [
        (None, "sig", "–"),
        (0.0, "sig", "0"),
        (0.001234, "sig", "0.00123"),
        (1.9e-7, "sig", "1.9 × 10⁻⁷"),
        (float("inf"), "1", "∞"),
        (0.02, "sig", "0.0200"),
        (27675776, "bytes", "27.7 MB"),
        (15_000_000, "bytes", "15.0 MB"),
        (257_193_772, "bytes", "257 MB"),
        (0.0304, "seconds", "30 ms"),
        (3725, "seconds", "1 h 02 min"),
        (0.9871, "percent1", "98.7 %"),
    ],
)
def test_numbers_for_people(value, how, text):
    assert fmt(value, how) == text
