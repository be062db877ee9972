"""Reads prompt files strictly: it reports errors where a CSV reader would cut, join or guess."""

from __future__ import annotations

import csv
import io
import stat
from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError

_QUOTES = "Put a prompt that holds commas, quotes or newlines into double quotes."


def read_text(path: Path, key: str) -> str:
    """The text of a file in UTF-8, with or without a byte order mark; line ends stay as they are.

    Args:
        key: what names the file, for the message.

    Raises:
        UserError: no such file, a folder, no permission, or another encoding.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            kind = "a folder" if path.is_dir() else "a device or a pipe"
            raise UserError(f"{key}: {path} is {kind}, not a file.")
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{key}: there is no file {path}.") from None
    except OSError as error:
        raise UserError(f"{key}: {path} cannot be read: {error.strerror}.") from None
    advice = "Save it as UTF-8."
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{key}: {path} is in UTF-16 or UTF-32. {advice}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{key}: {path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8. {advice}"
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(
            f"{key}: {path}, line {line}: a NUL byte; the file may be in UTF-16. {advice}"
        )
    return text


def _rows(text: str, where: str) -> Iterator[tuple[int, list[str]]]:
    """Each row that is not blank, with the line that it begins on."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    begin = 1
    try:
        for row in reader:
            if row:
                yield begin, row
            begin = reader.line_num + 1
    except csv.Error as error:
        if "field larger" in str(error):
            raise UserError(
                f"{where}, line {begin}: a field has more than {csv.field_size_limit():,} "
                "characters. Is a double quote not closed?"
            ) from None
        if "unexpected end" in str(error):
            raise UserError(
                f"{where}, line {begin}: the double quote that opens here is never closed."
            ) from None
        raise UserError(
            f"{where}, line {begin}: text follows the closing quote of a field. "
            "Inside quotes, write a double quote twice; separate columns by commas."
        ) from None


def _prompt_column(header: list[str], where: str) -> int:
    if header.count("prompt") == 1:
        return header.index("prompt")
    if "prompt" in header:
        raise UserError(f"{where} has more than one column `prompt` in its first line.")
    found = ", ".join(f"`{name}`" for name in header)[:200] or "nothing"
    for separator, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        parts = [part.strip('" ') for part in ",".join(header).split(separator)]
        if len(parts) > 1 and "prompt" in parts:
            raise UserError(
                f"{where} has no column `prompt`: separate columns by commas, not {name}."
            )
    raise UserError(f"{where} has no column `prompt` in its first line, which holds {found}.")


def read_prompts(path: str | Path, key: str) -> list[str]:
    """The column `prompt` of a CSV file, in order.

    Args:
        path: UTF-8, header line with a column `prompt`; other columns are not read. Quoted fields
            may hold commas, quotes and newlines. Every row has as many fields as the header.
        key: configuration key, for the message.

    Raises:
        UserError: no such file or column, no prompts, an empty prompt, or a row that is not plain;
            the message names the line.
    """
    path = Path(path)
    where = f"{key}: {path}"
    rows = _rows(read_text(path, key), where)
    header = next(rows, (1, []))[1]
    column = _prompt_column(header, where)
    prompts = []
    for line, row in rows:
        if len(row) != len(header):
            fields = f"{len(row)} field{'s' if len(row) > 1 else ''}"
            raise UserError(
                f"{where}, line {line}: {fields} where the first line has {len(header)}. {_QUOTES}"
            )
        prompts.append(row[column].strip())
        if not prompts[-1]:
            raise UserError(f"{where}, line {line}: the prompt is empty.")
    if not prompts:
        raise UserError(f"{where} holds no prompts below its first line.")
    return prompts
