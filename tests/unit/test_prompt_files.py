"""Prompt files that are read, and how; those that are refused stand in `support.bad_input`."""

from __future__ import annotations

import csv
import io
import os
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditquant.errors import UserError
from ditquant.planning.prompt_files import read_prompts
from support.users import another_user, as_nobody


def test_prompts_may_hold_anything(tmp_path):
    prompts = ['a "red" star', "two\nlines", "эм-дит 拡散 🟥", "x" * 2000, "comma, here", "a;b\tc"]
    rows = "\n".join('"' + prompt.replace('"', '""') + '"' for prompt in prompts)
    path = tmp_path / "p.csv"
    path.write_text(f"prompt\n{rows}\n", encoding="utf-8")
    assert read_prompts(path, "k") == prompts


@pytest.mark.parametrize(
    "content",
    [
        b"prompt\na\nb\n",
        b"\xef\xbb\xbfprompt\r\na\r\nb",
        b"prompt\ra\rb\r",
        b"\nprompt\n\na\n\n\nb\n\n",
        b'"prompt"\n"a"\n b \n',
        b"id,prompt,style\n1,a,flat\n2,b,\n",
    ],
)
def test_layouts_that_are_read(tmp_path, content):
    path = tmp_path / "p.csv"
    path.write_bytes(content)
    assert read_prompts(path, "k") == ["a", "b"]


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=1))
def test_what_a_writer_of_csv_wrote_is_read_back(prompts):
    file = io.StringIO(newline="")
    writer = csv.writer(file, quoting=csv.QUOTE_ALL)
    writer.writerows([["prompt"], *([prompt] for prompt in prompts)])
    with tempfile.NamedTemporaryFile(suffix=".csv") as written:
        written.write(file.getvalue().encode("utf-8"))
        written.flush()
        if all(prompt.strip() for prompt in prompts):
            assert read_prompts(written.name, "k") == [prompt.strip() for prompt in prompts]
        else:
            with pytest.raises(UserError, match="the prompt is empty"):
                read_prompts(written.name, "k")


@another_user
def test_a_file_without_permission(tmp_path):
    path = tmp_path / "p.csv"
    path.write_bytes(b"prompt\na\n")
    path.chmod(0o600)

    def message() -> str:
        with pytest.raises(UserError) as error:
            read_prompts(path, "k")
        return str(error.value)

    assert as_nobody(message) == f"k: {path} cannot be read: Permission denied."


def test_a_pipe_is_not_waited_for(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(UserError, match="is a device or a pipe"):
        read_prompts(path, "k")
