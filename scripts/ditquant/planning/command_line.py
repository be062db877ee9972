"""Takes text from Snakemake's command line as it was typed.

Snakemake strips quotes from the ends of each value of `--config`, then reads it as a number, as
true or false, or as YAML: of `prompt="a star #1"` it keeps "a star", `prompt="a: b"` is a group.
"""

from __future__ import annotations

from collections.abc import MutableMapping, MutableSequence, Sequence
from typing import Any

from ..errors import UserError

# Top-level keys of the schema that hold text.
TEXTS = ("run", "recipe", "prompt")
_IN_A_FILE = "into a configuration file (`prompt:` in a file behind --configfile)"


def take_typed_text(
    config: MutableMapping[str, Any], entries: MutableSequence[str], is_spawned: bool
) -> None:
    """Puts the text of `run=`, `recipe=` and `prompt=` into the configuration, unchanged.

    A job that Snakemake submits gets the entries through a shell, quoted as Python quotes: that
    changes backslashes, $ and some quotes. So the prompt is handed on in hexadecimal digits, put
    into `entries`.

    Args:
        config: what Snakemake made of the entries and of configuration files.
        entries: `workflow.config_settings.config_args`, such as ["num_images=3", "prompt=a star"].
        is_spawned: whether this is a process that Snakemake started for a job.

    Raises:
        UserError: a prompt whose quotes may not be meant as its own, or the word null.
    """
    for index, entry in enumerate(entries):
        key, _, text = entry.partition("=")
        if key not in TEXTS or not text:
            continue
        if key == "prompt" and is_spawned:
            text = bytes.fromhex(text).decode("utf-8", "surrogateescape")
        elif key == "prompt":
            _check_prompt(text)
            entries[index] = "prompt=" + text.encode("utf-8", "surrogateescape").hex()
        config[key] = text


def _check_prompt(text: str) -> None:
    if text in ("null", "None", "~"):
        raise UserError(
            f"prompt: {text} is text here. Leave prompt out to draw inference.prompts; to draw the "
            f"word, put it {_IN_A_FILE}."
        )
    if text[0] == text[-1] and text[0] in "'\"":
        raise UserError(
            f"prompt: {text} has quotes inside the shell's quotes. Write prompt='a red star' with "
            f"one pair; if they belong to the prompt, put it {_IN_A_FILE}."
        )


def check_options(arguments: Sequence[str]) -> None:
    """Refuses an option that stands twice, where Snakemake would use the last and say nothing.

    Args:
        arguments: `sys.argv` of Snakemake.

    Raises:
        UserError: `--config` or `--configfile` twice.
    """
    for names in (("--config", "-C"), ("--configfile", "--configfiles")):
        used = [word for word in arguments[1:] if word.partition("=")[0] in names]
        if len(used) > 1:
            raise UserError(
                f"{names[0]} is given {len(used)} times; Snakemake uses only the last: write "
                f"all values behind one {names[0]}."
            )
