"""What the documents name exists: targets, keys, paths, options, links, the rule graph, sizes."""

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ditquant.evaluation.table import COLUMNS
from ditquant.models.load import mmdit_config
from ditquant.models.spec import read_spec
from ditquant.network.sampling import strided_steps
from ditquant.planning.validation import check_schema
from ditquant.planning.variants import WEIGHT_KINDS

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
SCHEMA = yaml.safe_load((ROOT / "config" / "schema.yaml").read_text("utf-8"))
DEFAULTS = yaml.safe_load((ROOT / "config" / "config.yaml").read_text("utf-8"))
RULE_FILES = [ROOT / "Snakefile", *sorted((ROOT / "rules").glob("*.smk"))]
RULE_TEXT = "\n".join(path.read_text("utf-8") for path in RULE_FILES)
# Name -> everything that the rule says.
RULES = dict(re.findall(r"^rule (\w+):\n(.*?)(?=^\S|\Z)", RULE_TEXT, re.MULTILINE | re.DOTALL))
# A rule that runs nothing is there to be asked for.
TARGETS = {name for name, body in RULES.items() if not re.search("script:|shell:", body)}
RULES |= dict.fromkeys(re.findall(r"^use rule \w+ as (\w+) with:", RULE_TEXT, re.MULTILINE), "")
# CLIP's 77 tokens, and as many zeros in the place of T5's.
TEXT_TOKENS = 2 * 77
GRAPH = ROOT / "docs" / "images" / "rulegraph.dot"

# Every option of the scripts that docs/CLASSIC_COMMANDS.md maps.
CLASSIC = {
    "generate_calibration_data": ["--num-images", "--num-steps", "--calib-dir", "--resume"],
    "cache_adaround_data": ["--calib-dir", "--num-images", "--stride", "--force"],
    "adaround_optimize": [
        "--adaround-cache", "--output", "--iters", "--batch-size", "--bits-w", "--bits-a",
        "--blocks",
    ],
    "collect_layer_activations": ["--calib-dir", "--num-images", "--stride", "--force"],
    "analyze_activations": ["--stats", "--output", "--use-hist-p999"],
    "analyze_activations_multitier": [
        "--stats", "--output", "--a4-threshold", "--a6-threshold", "--shifted-a4-threshold",
        "--shifted-a6-threshold",
    ],
    "load_adaround_model": [
        "--adaround-output", "--prompt", "--output-image", "--quant-config", "--compare",
        "--diff-stats", "--mlx-int4", "--group-size", "--num-steps", "--seed", "--cfg-scale",
        "--negative-prompt", "--height", "--width",
    ],
    "visualize_activations": [
        "--stats", "--output-dir", "--snapshot-steps", "--plot-distributions", "--quant-config",
        "--animate",
    ],
}  # fmt: skip


def tables(text: str) -> dict[str, list[list[str]]]:
    """First header cell -> rows of cells, of every table of a document."""
    found: dict[str, list[list[str]]] = {}
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        header, _, *rows = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()
        ]
        found[header[0]] = rows
    return found


def code(text: str) -> list[str]:
    """What stands between single backticks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def schema_of(key: str) -> dict | None:
    """The schema below a dotted key, or None; `{recipe}` stands for any recipe's name."""
    node = SCHEMA
    for part in key.split("."):
        if part == "{recipe}":
            node = SCHEMA["$defs"]["recipe"]
        else:
            node = node.get("properties", {}).get(part)
        if node is None:
            return None
        if "$ref" in node:
            for name in node["$ref"].removeprefix("#/").split("/"):
                node = SCHEMA[name] if name == "$defs" else SCHEMA["$defs"][name]
    return node


def outputs() -> set[str]:
    """Paths below results/{run}/ that rules write, with wildcards in single braces."""
    paths = set(re.findall(r'\{RESULTS\}/([^"\s]+)"', RULE_TEXT))
    return {path.replace("{{", "{").replace("}}", "}") for path in paths}


def fits(path: str) -> bool:
    """Whether a rule writes the path (a wildcard takes any name), or files below it."""
    for output in outputs():
        pattern = re.sub(r"\\\{\w+\\\}", r"[^/]+", re.escape(output))
        if re.fullmatch(pattern, path) or (path.endswith("/") and output.startswith(path)):
            return True
    return False


def read(name: str) -> str:
    return (ROOT / "docs" / name).read_text("utf-8")


TARGETS_PAGE = read("TARGETS.md")
SIZES = tables(read("REAL_MODELS.md"))["What"]


def test_readme_is_short():
    assert len(README.encode()) <= 9_000


def test_rules_were_found():
    assert {"all", "calibrate", "compare", "report"} <= TARGETS
    assert {"generate_calibration", "optimize_block"} <= set(RULES)


def test_targets_and_their_files_exist():
    rows = tables(TARGETS_PAGE)["Target"]
    named = {name for targets, *_ in rows for name in code(targets)}
    assert named == TARGETS | {"install_demo"}
    for _, _, files in rows:
        for path in code(files):
            assert fits(path), path


def test_every_workflow_target_of_the_design_is_there():
    promised = {
        "calibrate", "weights", "activations", "plots", "inference", "compare", "evaluate",
        "report", "quantize", "all",
    }  # fmt: skip
    assert promised <= TARGETS


def test_paths_that_are_asked_for_are_written_by_a_rule():
    text = "\n".join(path.read_text("utf-8") for path in DOCUMENTS)
    paths = re.findall(r"results/(?:demo|\{run\})/([\w{}./*-]+)", text)
    assert len(paths) > 20
    for path in paths:
        assert fits(path.rstrip(".")), path


def classic_rows() -> dict[str, list[tuple[list[str], str]]]:
    """Script -> (options, what stands in the column `Here`)."""
    scripts: dict[str, list[tuple[list[str], str]]] = {}
    for classic, here, _ in tables(read("CLASSIC_COMMANDS.md"))["Classic"]:
        if classic.startswith("**"):
            name = code(classic)[0]
            scripts[name] = [([], here)]
        else:
            options = [option.split()[0] for option in code(classic)]
            scripts[name].append((options, here))
    return scripts


def test_every_classic_option_has_its_line():
    rows = classic_rows()
    found = {script: [o for options, _ in lines for o in options] for script, lines in rows.items()}
    assert {script: sorted(options) for script, options in found.items()} == {
        script: sorted(options) for script, options in CLASSIC.items()
    }


@pytest.mark.parametrize("script", CLASSIC)
def test_what_classic_options_became_exists(script):
    for _, here in classic_rows()[script]:
        for word in code(here):
            if here.startswith("target"):
                assert word in TARGETS, word
            elif here.startswith("rule"):
                assert word in RULES, word
            elif word.startswith("--forcerun"):
                assert word.split()[1] in RULES, word
            elif word.startswith("results/"):
                assert fits(word.removeprefix("results/{run}/")), word
            else:
                assert schema_of(word) is not None, word


def dotted_keys(text: str) -> list[str]:
    """Dotted words in code whose first part is a group of keys."""
    groups = [name for name, node in SCHEMA["properties"].items() if node.get("type") == "object"]
    words = [word.split(":")[0] for word in code(text) if "unknown key" not in word]
    return [
        word
        for word in words
        if re.fullmatch(r"[\w{}]+(\.[\w{}]+)+", word)
        and word.split(".")[0] in groups
        and not word.endswith((".safetensors", ".json", ".py"))
    ]


def test_configuration_keys_in_the_documents_exist():
    keys = [key for path in DOCUMENTS for key in dotted_keys(path.read_text("utf-8"))]
    assert len(keys) > 20
    assert [key for key in keys if schema_of(key) is None] == []


def commands() -> list[str]:
    """Lines of the documents' shell examples that call Snakemake, without comments."""
    texts = [path.read_text("utf-8") for path in DOCUMENTS]
    blocks = [block for text in texts for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)]
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    inline = [word for text in texts for word in code(text) if word.startswith("snakemake ")]
    return [line for line in [*lines, *inline] if line.startswith("snakemake")]


def test_commands_name_targets_keys_and_files_that_exist():
    scalars = {k for k, node in SCHEMA["properties"].items() if node.get("type") != "object"}
    found = [line for line in commands() if "<" not in line]
    assert len(found) > 10
    for line in found:
        words = line.split('"')[0].split()[1:]
        if words and not words[0].startswith("-"):
            known = words[0] in TARGETS or fits(words[0].removeprefix("results/demo/"))
            assert known, line
        for key in re.findall(r"(\w+)=", line.partition("--config ")[2].split('"')[0]):
            assert key in scalars, line
        for file in re.findall(r"--configfile (\S+)", line):
            assert file == "my.yaml" or (ROOT / file).is_file(), line
        for profile in re.findall(r"--workflow-profile (\S+)", line):
            assert (ROOT / profile / "config.yaml").is_file(), line
        for rule in re.findall(r"--forcerun (\w+)", line):
            assert rule in RULES, line


def test_configuration_examples_are_valid():
    texts = [path.read_text("utf-8") for path in DOCUMENTS]
    examples = [e for text in texts for e in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    assert examples
    for example in examples:
        config = yaml.safe_load(example)
        check_schema(config, SCHEMA)
        if "recipe" in config:
            assert config["recipe"] in {**DEFAULTS["recipes"], **config.get("recipes", {})}


def test_variants_and_columns_are_named_as_the_code_has_them():
    named = {name for row in tables(TARGETS_PAGE)["Variant"] for name in code(row[0])}
    kinds = (*WEIGHT_KINDS, "a8", "multitier", "{name}")
    assert named == {"full", "full-{name}", *(f"{{recipe}}-{kind}" for kind in kinds)}
    assert "`model_bytes`" in read("TROUBLESHOOTING.md")
    assert "model_bytes" in COLUMNS


def anchor(heading: str) -> str:
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_local_links_resolve(document):
    text = document.read_text("utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    for link in links:
        if link.startswith(("http:", "https:")):
            continue
        path, _, section = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        if section:
            headings = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.MULTILINE)
            assert section in map(anchor, headings), link


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_named_in_code_exist(document):
    folders = (
        "config/",
        "docs/",
        "envs/",
        "profiles/",
        "resources/",
        "rules/",
        "scripts/",
        "tests/",
    )
    for word in code(document.read_text("utf-8")):
        if word.startswith((*folders, "benchmarks/")) and " " not in word and "{" not in word:
            assert (ROOT / word).exists(), word


def test_modules_of_algorithms_exist():
    lines = re.findall(r"^Code in (.*)$", read("ALGORITHMS.md"), re.MULTILINE)
    assert len(lines) >= 8
    for line in lines:
        for folder, modules in re.findall(r"\(\.\./([\w/]+)\): ([^;]+)", line):
            for module in code(modules):
                assert (ROOT / folder / f"{module}.py").is_file(), f"{folder}/{module}"


# ------------------------------------------------------------------------------- rule graph


def edges(dot: str) -> set[tuple[str, str]]:
    """(rule, rule that needs it) of a DOT text, whatever its numbering, order and colours."""
    names = dict(re.findall(r'^\s*(\d+)\[\s*label = "(\w+)', dot, re.MULTILINE))
    pairs = re.findall(r"^\s*(\d+) -> (\d+)", dot, re.MULTILINE)
    return {(names[source], names[target]) for source, target in pairs}


def reachable(pairs: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """All (rule, rule that needs it), directly or not."""
    found = set(pairs)
    while more := {(a, d) for a, b in found for c, d in pairs if b == c} - found:
        found |= more
    return found


def test_rule_graph_is_current():
    """If it is not: sh docs/images/rulegraph.sh."""
    command = [sys.executable, "-m", "snakemake", "--rulegraph"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    committed = edges(GRAPH.read_text("utf-8"))
    assert len(committed) > 15
    assert edges(done.stdout) == committed


def test_drawn_graph_shows_the_same_rules():
    svg = GRAPH.with_suffix(".svg").read_text("utf-8")
    nodes = re.findall(r"<title>(\d+)</title>.*?<text[^>]*>(\w+)</text>", svg, re.DOTALL)
    names = dict(nodes)
    drawn = {
        (names[source], names[target])
        for source, target in re.findall(r"<title>(\d+)&#45;&gt;(\d+)</title>", svg)
    }
    graph = edges(GRAPH.read_text("utf-8"))
    assert drawn <= graph
    assert reachable(drawn) == reachable(graph)


# ----------------------------------------------------------------------------------- prompts


def prompts(name: str) -> list[str]:
    with (ROOT / "config" / "prompts" / name).open(newline="", encoding="utf-8") as file:
        return [row["prompt"] for row in csv.DictReader(file)]


def test_prompts_for_sd3_are_as_many_as_the_readme_says():
    calibration, evaluation = prompts("sd3-calibration.csv"), prompts("sd3-evaluation.csv")
    assert (len(calibration), len(evaluation)) == (1000, 64)
    distinct = {prompt.lower().strip() for prompt in calibration + evaluation}
    assert len(distinct) == 1064
    assert all(prompt == prompt.strip() and 10 < len(prompt) < 300 for prompt in distinct)


# ------------------------------------------------------------------------------------- sizes


def test_disk_sizes_follow_from_their_arithmetic():
    assert len(SIZES) >= 6
    for what, _, products, size in SIZES:
        (expression,) = code(products)
        assert re.fullmatch(r"[\d\s.+×/()]+", expression), what
        exact = eval(expression.replace("×", "*")) / 1e9
        (stated,) = re.findall(r"^([\d.]+) GB", size)
        assert round(exact, len(stated.partition(".")[2])) == float(stated), (what, exact)


def test_sizes_in_the_arithmetic_are_the_models():
    """Width, depth, tokens and steps as the registry, DiffusionKit and the configuration say."""
    spec = read_spec("sd3-medium")
    config = mmdit_config(spec)
    run = yaml.safe_load((ROOT / "config" / "sd3-medium.yaml").read_text("utf-8"))
    height, width = run["calibration"]["image_size"]
    image_tokens = (height // 8 // config.patch_size) * (width // 8 // config.patch_size)
    depth, steps = spec.shape.depth_multimodal, run["num_steps"]
    cached = len(strided_steps(steps, run["weights"]["stride"]))
    expressions = {what: code(products)[0] for what, _, products, _ in SIZES}
    assert expressions["`block_io/`"] == (
        f"({depth + 1} × {image_tokens} + {depth} × {TEXT_TOKENS}) "
        f"× {config.hidden_size} × 2 × 2 × {cached}"
    )
    assert f"{steps + 1} × {height // 8} × {width // 8} × 16 × 4" in expressions["`calibration/`"]
    assert f"× {TEXT_TOKENS} × {spec.text.channels}" in expressions["`conditioning/`"]


# ------------------------------------------------------------------------------------- spelling

# Names with a dot that are no keys: functions, and values of a JSON that the sentence names.
DOTTED = {"mx", "nn", "ditquant", "records", "summary"}
SUFFIXES = (
    ".csv", ".gif", ".json", ".md", ".npz", ".png", ".py", ".safetensors", ".svg", ".toml", ".txt",
    ".yaml",
)  # fmt: skip


def is_key(word: str) -> bool:
    """Whether a dotted word is a key, or the end of one whose group the sentence names."""
    groups = [name for name, node in SCHEMA["properties"].items() if node.get("type") == "object"]
    return any(schema_of(key) is not None for key in (word, *(f"{g}.{word}" for g in groups)))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_dotted_names_are_spelt_as_something_that_exists(document):
    """A key whose group is misspelt is no key, and would be looked at by nobody else."""
    unknown = [
        word
        for word in code(document.read_text("utf-8"))
        if re.fullmatch(r"[a-z_{}]\w*[\w{}]*(\.[\w{}]+)+", word)
        and not word.endswith(SUFFIXES)
        and word.split(".")[0] not in DOTTED
        and not re.match(r"(mm|uni)\d\d\.", word)
        and not is_key(word)
    ]
    assert unknown == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_targets_of_make_exist(document):
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    text = document.read_text("utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    called = re.findall(r"^make ([\w-]+)", "\n".join([*code(text), *blocks]), re.MULTILINE)
    assert phony
    assert [target for target in called if target not in phony[1].split()] == []
