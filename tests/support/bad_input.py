"""Input that a user gets wrong, and what must be said about it: the table `BAD_INPUT`.

`message(row, folder)` gives in process what the plan says of a row, by the calls that the Snakefile
makes; `dry_run(row, folder)` asks Snakemake itself, which must end with the same message and make
nothing.
"""

from __future__ import annotations

from typing import Any

from .bad_input_row import BadInput, dry_run, message
from .planned import CONFIGURATION, ROOT

__all__ = ["BAD_INPUT", "BadInput", "dry_run", "message"]


def _bomb(first: str, again: str) -> bytes:
    """A file in which each line stands nine times for the one before it."""
    lines = [f"a0: &a0 {first}"]
    for level in range(1, 12):
        uses = [f"*a{level - 1}"] * 9
        lines.append(f"a{level}: &a{level} {again.format(*uses)}")
    return "\n".join(lines).encode()


_LISTS = _bomb("[x]", "[{}, {}, {}, {}, {}, {}, {}, {}, {}]")
_GROUPS = _bomb("{x: 1}", "{{<<: [{}, {}, {}, {}, {}, {}, {}, {}, {}]}}")


def _prompts(name: str, says: str, content: bytes, key: str = "calibration") -> BadInput:
    return BadInput(
        f"prompt file: {name}",
        says,
        {"num_images": 1, "prompts": {key: "{folder}/p.csv"}},
        files={"p.csv": content},
    )


def _value(name: str, says: str, **changes: Any) -> BadInput:
    return BadInput(name, says, changes)


def _file(name: str, says: str, text: bytes, reaches_us: bool = True) -> BadInput:
    return BadInput(f"configuration file: {name}", says, text=text, reaches_us=reaches_us)


def _typed(says: str, *typed: str) -> BadInput:
    return BadInput(f"--config {' '.join(typed)[:60]!r}", says, typed=typed)


_LONG = "x" * 300

PROMPT_FILES = (
    _prompts("Latin-1", "p.csv, line 3: byte 0xe9 is not UTF-8. Save it as UTF-8.",
             "prompt\na star\na café\n".encode("latin-1")),
    _prompts("UTF-16", "p.csv is in UTF-16 or UTF-32. Save it as UTF-8.",
             "prompt\na star\n".encode("utf-16")),
    _prompts("UTF-16 without its mark", "p.csv, line 1: a NUL byte; the file may be in UTF-16.",
             "prompt\na star\n".encode("utf-16-le")),
    _prompts("UTF-32", "p.csv is in UTF-16 or UTF-32.", "prompt\na\n".encode("utf-32")),
    _prompts("a surrogate", "p.csv, line 2: byte 0xed is not UTF-8.", b"prompt\na \xed\xa0\x80\n"),
    _prompts("a NUL", "p.csv, line 3: a NUL byte", b"prompt\na\nb\0c\n"),
    _prompts("an unquoted comma", "p.csv, line 3: 2 fields where the first line has 1. Put a prompt"
             " that holds commas, quotes or newlines into double quotes.",
             b"prompt\na star\na star, red\n"),
    _prompts("an unquoted comma behind others",
             "p.csv, line 2: 3 fields where the first line has 2",
             b"style,prompt\nflat,a star, red\n"),
    _prompts("an unquoted comma above an empty column, as spreadsheets write them",
             "p.csv, line 3: text in a column without a name in the first line. Put a prompt that"
             " holds commas", b"prompt,\na star,\na star, red\n"),
    _prompts("a row with fewer fields", "p.csv, line 2: 1 field where the first line has 2",
             b"prompt,style\na star\nb,c\n"),
    _prompts("an unclosed quote",
             "p.csv, line 3: the double quote that opens here is never closed.",
             b'prompt\na star\n"a ring\na cross\n'),
    _prompts("an unclosed quote in a large file", "p.csv, line 2: a field has more than 131,072",
             b'prompt\n"a ring\n' + b"a cross\n" * 20_000),
    _prompts("a long field", "p.csv, line 3: a field has more than 131,072 characters.",
             b"prompt\na\n" + b"x" * 131_073 + b"\n"),
    _prompts("text behind a quote", "p.csv, line 2: text follows the closing quote of a field.",
             b'prompt\n"red" star\n'),
    _prompts("semicolons",
             "p.csv has no column `prompt`: separate columns by commas, not semicolons",
             b"prompt;style\na star;flat\n"),
    _prompts("semicolons and quotes", "separate columns by commas.",
             b'"prompt";"style"\n"a star";"flat"\n'),
    _prompts("tabs", "separate columns by commas, not tabs", b"style\tprompt\nflat\ta star\n"),
    _prompts("bars", "separate columns by commas, not bars", b"style|prompt\nflat|a star\n"),
    _prompts("the column twice", "more than one column `prompt`", b"prompt,prompt\na,b\n"),
    _prompts("a capital", "no column `prompt` in its first line, which holds `Prompt`",
             b"Prompt\na star\n"),
    _prompts("no header", "no column `prompt` in its first line, which holds `a star`",
             b"a star\n"),
    _prompts("nothing", "no column `prompt` in its first line, which holds nothing", b""),
    _prompts("a header alone", "p.csv holds no prompts below its first line.", b"prompt\n"),
    _prompts("blanks", "p.csv, line 3: the prompt is empty.", b'prompt\na\n"  "\n'),
    _prompts("of the evaluation", "prompts.evaluation: ", b"prompt\na, b\n", "evaluation"),
    _value("prompt file: a folder", "prompts.calibration: {folder} is a folder, not a file.",
           prompts={"calibration": "{folder}"}),
    _value("prompt file: a device", "/dev/null is a device or a pipe, not a file.",
           prompts={"calibration": "/dev/null"}),
    _value("prompt file: missing", "there is no file {folder}/no.csv.",
           prompts={"calibration": "{folder}/no.csv"}),
    _value("prompt file: below a file", "cannot be read: Not a directory.",
           prompts={"calibration": f"{CONFIGURATION}/p.csv"}),
    _value("prompt file: a long name", "cannot be read: File name too long.",
           prompts={"calibration": "{folder}/" + _LONG}),
    _value("prompt file: of nobody", "~nobody-here/p.csv.",
           prompts={"calibration": "~nobody-here/p.csv"}),
    _value("prompt file: no name", "prompts.calibration: . is a folder",
           prompts={"calibration": ""}),
    _value("the same captions", "prompts.calibration and prompts.evaluation share 128 captions",
           prompts={"evaluation": "config/prompts/demo-calibration.csv"}),
)  # fmt: skip

COMMAND_LINE = (
    _typed("prompt: null is text here. Leave prompt out", "prompt=null"),
    _typed("prompt: ~ is text here", "prompt=~"),
    _typed("prompt: 'a star' has quotes inside the shell's", "prompt='a star'"),
    _typed('prompt: "a: b" has quotes', 'prompt="a: b"'),
    _typed("half of a surrogate pair, or bytes that are not UTF-8", "prompt=caf\udce9"),
    _typed("seed: nan is not a finite number.", "seed=nan"),
    _typed("num_images: inf is not a finite number.", "num_images=inf"),
    _typed("seed: -inf is not a finite number.", "seed=-infinity"),
    _typed("num_images: 3.5 is not a whole number.", "num_images=3.5"),
    _typed("num_images: true is not a whole number.", "num_images=True"),
    _typed("num_images: null is not a whole number.", "num_images="),
    _typed("num_images: '3 4' is not a whole number.", "num_images=3 4"),
    _typed("num_images: 10001 is greater than the maximum of 10000.", "num_images=10001"),
    _typed("num_images is 1000, but config/prompts/demo-calibration.csv holds only 128 prompts",
           "num_images=1000"),
    _typed("num_steps: 1001 is greater than the maximum of 1000.", "num_steps=1001"),
    _typed("seed: the number is too large.", "seed=" + "9" * 400),
    _typed("run: 'demo\\n' is no such name.", "run=demo\n"),
    _typed("run: '..' is no such name.", "run=.."),
    _typed("run: '/elsewhere/x' is no such name.", "run=/elsewhere/x"),
    _typed("run: 'a/b' is no such name.", "run=a/b"),
    _typed("run: 'a b' is no such name.", "run=a b"),
    _typed("run: 'xxxxxxxxxx", f"run={_LONG}"),
    _typed("run: null is not text.", "run="),
    _typed("recipe: unknown recipe 'rtn\\n'", "recipe=rtn\n"),
    _typed("recipe: unknown recipe '1e3'", "recipe=1e3"),
    _typed("weights: 3 is not a group of keys.", "weights=3"),
    _typed("weights.stride: '2' is not a whole number. It is text here", "weights={stride: 2}"),
    _typed("num_image: unknown key; did you mean num_images?", "num_image=3"),
)  # fmt: skip

CONFIGURATION_FILES = (
    _file("a key twice", "line 3: 'run' appears a second time (first in line 1)",
          b"run: a\nseed: 2\nrun: b\n"),
    _file("a key twice in a group", "line 2: 'stride' appears a second time",
          b"weights:\n  {stride: 2, stride: 3}\n"),
    _file("a key twice in JSON", "'run' appears twice in one group", b'{"run": "a", "run": "b"}'),
    _file("a bomb of lists", "more than 20,000 values, each use of an alias", _LISTS),
    _file("a bomb of groups", "more than 20,000 values, each use of an alias", _GROUPS, False),
    _file("an alias inside itself", "line 1: an alias inside what it stands for.", b"a: &a [*a]\n"),
    _file("too many levels", "this has more values than a configuration may",
          b"recipe: " + b"[" * 40 + b"]" * 40),
    _file("a comment behind a prompt", "line 1: YAML takes what follows # for a comment",
          b"prompt: a star #1 of them\n"),
    _file("a comment behind a prompt of a list", "line 3: YAML takes what follows #",
          b"inference:\n  prompts:\n  - a star # red\n"),
    _file("a comment behind the negative prompt", "line 1: YAML takes what follows #",
          b"calibration: {negative_prompt: blurry # bad\n}\n"),
    _file("a leading zero", "line 1: YAML reads 010 as 8.", b"num_images: 010\n"),
    _file("a time of day", "line 1: YAML reads 1:30 as 90.", b"seed: 1:30\n"),
    _file("a date", "run: YAML reads 2026-11-29 as a date: put it into quotes.",
          b"run: 2026-11-29\n"),
    _file("a number for a name", "recipes: YAML reads the name 1 as no text: put it into quotes.",
          b"recipes: {1: {rounding: rtn}}\n"),
    _file("a yes for a name", "recipes: YAML reads the name true as no text",
          b"recipes: {yes: {}}\n"),
    _file("bytes", "run: a configuration cannot hold what YAML calls bytes.",
          b"run: !!binary aGk=\n"),
    _file("a set", "run: a configuration cannot hold what YAML calls set.", b"run: !!set {a}\n"),
    _file("not a number", "seed: nan is not a finite number.", b"seed: .nan\n"),
    _file("infinity", "calibration.cfg_weight: inf is not a finite number.",
          b"calibration: {cfg_weight: .inf}\n"),
    _file("infinity in JSON", "seed: inf is not a finite number.", b'{"seed": Infinity}'),
    _file("half a surrogate pair", "prompt: the text holds half of a surrogate pair",
          b'prompt: "a \\ud83d star"\n'),
    _file("a NUL", "calibration.negative_prompt: the text holds a NUL character.",
          b'calibration: {negative_prompt: "a\\0b"}\n'),
    _file("an exponent", "seed: '1e3' is not a whole number. It is text here", b"seed: 1e3\n"),
    _file("an exponent of a rate", "recipes.x.learning_rate: '1e-3' is not a number. It is text",
          b"recipes: {x: {rounding: rtn, learning_rate: 1e-3}}\n"),
    _file("a list", "no keys at the top", b"- run\n", False),
    _file("nothing", "is empty: write `key: value` lines", b"# run: demo\n", False),
    _file("tabs", "line 2: a tab, where YAML wants spaces.", b"weights:\n\tstride: 2\n", False),
    _file("a colon in a prompt", "line 1: a colon inside text without quotes",
          b"prompt: a star: red\n", False),
    _file("Latin-1", "line 1: byte 0xe9 is not UTF-8.", "prompt: café\n".encode("latin-1"), False),
    _file("UTF-16", "is in UTF-16 or UTF-32.", "run: a\n".encode("utf-16"), False),
    _file("a control character", "line 2: special characters are not allowed.",
          b"seed: 1\nrun: a\x07\n", False),
    _file("an unclosed quote", "not YAML: found unexpected end of stream", b'run: "a\n', False),
    _file("two documents", "not YAML", b"seed: 1\n---\nseed: 2\n", False),
    _file("a tag", "line 1: could not determine a constructor", b"run: !mine x\n", False),
    _file("no such date", "line 1: month must be in 1..12.", b"run: 2026-13-01\n", False),
    _file("a list for a name", "a list or a group is in the place of a name.", b"? [a]\n: 1\n",
          False),
    _file("nothing behind <<", "<< needs an alias of a group: *name.",
          b"weights: {<<: 3}\n", False),
)  # fmt: skip

_TIERS = {"mode": "sensitivity", "weighting": "latents"}

VALUES = (
    _value("a key that is unknown", "num_image: unknown key; did you mean num_images?",
           num_image=3),
    _value("a key of a group that is unknown", "weights.strid: unknown key; did you mean stride?",
           weights={"strid": 3}),
    _value("a word for a number", "num_images: 'three' is not a whole number.", num_images="three"),
    _value("a word for a boolean", "text.t5: 'yes' is not true or false.", text={"t5": "yes"}),
    _value("a stride of 0", "weights.stride: 0 is less than the minimum of 1.",
           weights={"stride": 0}),
    _value("a recipe that is unknown", "unknown recipe 'adaruond'", recipe="adaruond"),
    _value("a pattern that fits nothing", "svd*-a8: no variant is named like this",
           evaluation={"variants": ["svd*-a8"]}),
    _value("a model that is unknown", "Unknown model 'sd4'", model={"name": "sd4"}),
    _value("more images than prompts", "num_images is 4000, but config/prompts/demo-calibration"
           ".csv holds only 128 prompts", num_images=4000),
    _value("a group size that is none", "recipes.x.group_size: 48 is none of 32, 64, 128.",
           recipes={"x": {"rounding": "adaround", "group_size": 48}}),
    _value("an option that a rounding does not read", "recipes.x.clip: gptq does not read it;",
           recipes={"x": {"rounding": "gptq", "clip": True}}),
    _value("an option of a tuning that is off", "recipes.x.tune_stride: rtn reads it only with",
           recipes={"x": {"rounding": "rtn", "tune_stride": 3}}),
    _value("a rotation of no size", "recipes.x.rotation: 48 is none of null, 16, 32,",
           recipes={"x": {"rounding": "rtn", "rotation": 48}}),
    _value("a rotation of a balanced recipe", "recipes.x: rotation does not go with rounding: awq",
           recipes={"x": {"rounding": "awq", "rotation": 16}}),
    _value("a boolean for a number", "seed: true is not a whole number.", seed=True),
    _value("a number for a boolean", "text.t5: 1 is not true or false.", text={"t5": 1}),
    _value("a number for text", "inference.prompts.0: 123 is not text. Put it into quotes.",
           inference={"prompts": [123]}),
    _value("a group for a prompt", "inference.prompts.0: {a star: ...} is not text. YAML gives",
           inference={"prompts": [{"a star": "red"}]}),
    _value("text for a list", "inference.prompts: 'a star' is not a list.",
           inference={"prompts": "a star"}),
    _value("no prompts", "inference.prompts: a list of 0, where it must have at least 1.",
           inference={"prompts": []}),
    _value("too many prompts", "inference.prompts: a list of 1001, where it must have at most",
           inference={"prompts": ["a"] * 1001}),
    _value("one side of a picture", "calibration.image_size: a list of 1, where it must have",
           calibration={"image_size": [64]}),
    _value("bits and tiers", "activations.variants.x: bits and tiers exclude each other; leave one",
           activations={"variants": {"x": {"bits": 6, "tiers": {}}}}),
    _value("no name of a checkpoint", "model.checkpoint: '' should be non-empty.",
           model={"checkpoint": ""}),
    _value("a pattern that is none", "evaluation.variants: [-weights: no variant is named",
           evaluation={"variants": ["[-weights"]}),
    _value("a variant without a name", "Unknown variant '-'", evaluation={"variants": ["-"]}),
    _value("a picture that is prompts", "byte 0x89 is not UTF-8", prompts={
        "calibration": str(ROOT / "docs" / "images" / "comparison.png")}),
    _value("blank prompts", "inference.prompts: a prompt is empty.",
           inference={"prompts": ["a", " "]}),
    _value("no negative prompt", "calibration.negative_prompt: null is not text.",
           calibration={"negative_prompt": None}),
    _value("a list of negative prompts", "calibration.negative_prompt: ['a'] is not text. YAML",
           calibration={"negative_prompt": ["a"]}),
    _value("an empty group", "weights: null is not a group of keys. Leave the key out",
           weights=None),
    _value("2 ** 63", "seed: the number is too large.", seed=2**63),
    _value("a half", "weights.stride: 2.5 is not a whole number.", weights={"stride": 2.5}),
    _value("a size of a half", "recipes.x.group_size: 64.5 is none of 32, 64, 128.",
           recipes={"x": {"rounding": "rtn", "group_size": 64.5}}),
    _value("a long run", "run: 'xxxxxxxxxx", run=_LONG),
    _value("a run with a newline", "run: 'demo\\n' is no such name.", run="demo\n"),
    _value("a run that is a folder above", "run: '..' is no such name.", run=".."),
    _value("a long recipe", "recipes: 'xxxxxxxx", recipes={_LONG: {"rounding": "rtn"}}),
    _value("a recipe with a newline", "recipes: 'x\\n' is no such name. Small letters and digits",
           recipes={"x\n": {"rounding": "rtn"}}),
    _value("a recipe with a slash", "recipes: '../x' is no such name.",
           recipes={"../x": {"rounding": "rtn"}}),
    _value("a recipe called full", "recipes.full: this name stands for weights that are not",
           recipes={"full": {"rounding": "rtn"}}),
    _value("a recipe called like the noise floor", "recipes.noise: with activations.variants.floor",
           recipes={"noise": {"rounding": "rtn"}},
             activations={"variants": {"floor": {"bits": 6}}}),
    _value("a long variant", "activations.variants: 'xxxxxx",
           activations={"variants": {_LONG: {"bits": 6}}}),
    _value("a variant with a newline", "activations.variants: 'x\\n' is no such name.",
           activations={"variants": {"x\n": {"bits": 6}}}),
    _value("a variant that is taken", "activations.variants.a8: this name is taken",
           activations={"variants": {"a8": {"bits": 6}}}),
    _value("more images for weights than there are",
           "weights.num_images is 11, but num_images is 10",
           weights={"num_images": 11}),
    _value("more images for activations", "activations.num_images is 11, but num_images is 10",
           activations={"num_images": 11}),
    _value("more images for tiers",
           "activations.tiers.images is 6, but activations.num_images is 5",
           activations={"tiers": {"images": 6}}),
    _value("more images for a variant's tiers", "activations.variants.t.tiers.images is 3, but",
           activations={"num_images": 2, "variants": {"t": {"tiers": {**_TIERS, "images": 3}}}}),
    _value("more images for clips", "activations.clips.images is 11, but num_images is 10",
           activations={"granularity": "group", "range": "measured", "clips": {"images": 11}}),
    _value("more images for a variant's clips", "activations.variants.c.clips.images is 11",
           activations={"variants": {"c": {
               "granularity": "step", "range": "measured", "clips": {"images": 11}}}}),
    _value("more captions than there are", "evaluation.captions is 257, but",
           evaluation={"captions": 257}),
    _value("too many captions", "evaluation.captions: 10001 is greater than the maximum",
           evaluation={"captions": 10_001}),
    _value("too many steps", "inference.num_steps: 1001 is greater", inference={"num_steps": 1001}),
    BadInput("too many shards",
             "text.shard_size is 1: 1001 calibration prompts would take more than "
             "1,000 shards, whose names have three digits. Set it to 2 or more.",
             {"num_images": 1001, "text": {"shard_size": 1},
             "prompts": {"calibration": "{folder}/p.csv"}},
             files={"p.csv": b"prompt\n" + b"a star\n" * 1001}),
    _value("a stride beyond the steps", "weights.stride is 51, larger than num_steps",
           weights={"stride": 51}),
    _value("a checkpoint of nobody", "~nobody-here/x",
           model={"name": "local", "checkpoint": "~nobody-here/x"}),
    _value("a checkpoint with a long name", "File name too long",
           model={"name": "local", "checkpoint": "/" + _LONG}),
    _value("a single-file checkpoint with a long name", "File name too long",
           model={"name": "sd3-medium", "checkpoint": "/" + _LONG}),
    _value("a folder for a checkpoint", "there is no file {folder}",
           model={"name": "sd3-medium", "checkpoint": "{folder}"}),
)  # fmt: skip

BAD_INPUT = (*PROMPT_FILES, *COMMAND_LINE, *CONFIGURATION_FILES, *VALUES)
