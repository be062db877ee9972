"""Every row of the table of bad input is told, and what looks odd and is not works."""

from __future__ import annotations

import pytest

from support.bad_input import BAD_INPUT, message


@pytest.mark.parametrize("row", BAD_INPUT, ids=lambda row: row.name)
def test_bad_input_is_told(row, tmp_path):
    said = message(row, tmp_path)
    assert said is not None, "nothing was said"
    assert row.says.replace("{folder}", str(tmp_path)) in said
    assert len(said) < 1000
