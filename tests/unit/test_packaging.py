"""One set of versions everywhere: pyproject.toml, the locks, the conda environments, the texts."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ditquant
from ditquant.planning.digest import code_files

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
EXTRAS = PYPROJECT["project"]["optional-dependencies"]
(DIFFUSIONKIT,) = PYPROJECT["tool"]["ditquant"]["without-dependencies"]
ENVIRONMENTS = sorted((ROOT / "envs").glob("*.yaml"))
WITH_DIFFUSIONKIT = [path for path in ENVIRONMENTS if path.stem != "plots"]
LOCKS = {"requirements.lock": "cpu", "requirements-cuda13.lock": "cuda13"}

MACHINES = {
    "linux": {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"},
    "linux-arm": {
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "aarch64",
    },
    "macos": {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
}


def exact(requirement: Requirement) -> str:
    """The version of a requirement that allows one version only."""
    (specifier,) = requirement.specifier
    assert specifier.operator == "==", f"{requirement} is not pinned with =="
    assert "*" not in specifier.version, f"{requirement} is not pinned to one version"
    return specifier.version


def declared(*extras: str) -> list[Requirement]:
    lines = [*PYPROJECT["project"]["dependencies"]]
    for extra in extras:
        lines += EXTRAS[extra]
    return [Requirement(line) for line in lines]


def locked(name: str) -> list[Requirement]:
    text = (ROOT / name).read_text("utf-8").replace("\\\n", " ")
    lines = [line.split("--hash")[0].strip() for line in text.splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def applying(requirements: list[Requirement], machine: str, python: str) -> dict[str, str]:
    """Name to version of what is installed on a kind of machine."""
    environment = {
        **MACHINES[machine],
        "python_version": python,
        "python_full_version": f"{python}.0",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
        "extra": "",
    }
    return {
        canonicalize_name(requirement.name): exact(requirement)
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate(environment)
    }


def pip_lines(environment: Path) -> list[str]:
    content = yaml.safe_load(environment.read_text("utf-8"))
    (nested,) = [entry["pip"] for entry in content["dependencies"] if isinstance(entry, dict)]
    return nested


@pytest.mark.parametrize("name", LOCKS)
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("machine", MACHINES)
def test_lock_holds_every_direct_pin(name: str, python: str, machine: str) -> None:
    lock = applying(locked(name), machine, python)
    wanted = applying(declared(LOCKS[name], "dev"), machine, python)
    assert {key: lock.get(key) for key in wanted} == wanted, "run `make lock`"


@pytest.mark.parametrize("name", LOCKS)
def test_lock_names_no_host_and_has_a_hash_for_everything(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    assert "://" not in text
    assert not re.search(r"^\s*--(?!hash)", text, re.MULTILINE), "an option of pip in the lock"
    entries = re.split(r"\n(?=[a-z0-9])", text)
    assert [entry for entry in entries if "==" in entry and "--hash=sha256:" not in entry] == []


def test_locks_agree() -> None:
    cpu, cuda = ({r.name: exact(r) for r in locked(name)} for name in LOCKS)
    assert {name: cpu[name] for name in cpu.keys() & cuda.keys()} == {
        name: cuda[name] for name in cpu.keys() & cuda.keys()
    }
    assert "mlx-cuda-13" in cuda
    assert "mlx-cpu" not in cuda


@pytest.mark.parametrize("name", LOCKS)
def test_lock_is_lean(name: str) -> None:
    giants = {"torch", "coremltools", "scikit-learn", "wandb", "argmaxtools", "pandas", "scipy"}
    assert giants.isdisjoint(requirement.name for requirement in locked(name))


def test_linux_gets_a_fast_blas_and_macos_nothing_of_the_kind() -> None:
    lock = locked("requirements.lock")
    assert {"mlx-cpu", "mkl"} <= applying(lock, "linux", "3.12").keys()
    assert {"mlx-cpu", "mkl"}.isdisjoint(applying(lock, "macos", "3.12"))
    assert "mlx-metal" in applying(lock, "macos", "3.12")


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda path: path.stem)
def test_environment_has_the_pins_of_pyproject(environment: Path) -> None:
    # extras are part of the identity: mlx[cpu] is another requirement than mlx
    pinned = {(r.name, *sorted(r.extras), str(r.marker)): r for r in declared("cpu", "dev")}
    for line in pip_lines(environment):
        requirement = Requirement(line)
        key = (requirement.name, *sorted(requirement.extras), str(requirement.marker))
        assert key in pinned, f"{environment.name}: {line} is not in pyproject.toml"
        assert exact(requirement) == exact(pinned[key]), f"{environment.name}: {line}"


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda path: path.stem)
def test_environment_is_from_conda_forge_with_an_explicit_pip(environment: Path) -> None:
    content = yaml.safe_load(environment.read_text("utf-8"))
    assert content["channels"] == ["conda-forge", "nodefaults"]
    assert "://" not in environment.read_text("utf-8")
    plain = [entry for entry in content["dependencies"] if isinstance(entry, str)]
    assert "pip" in plain
    (python,) = [entry for entry in plain if entry.startswith("python ")]
    minimum = PYPROJECT["project"]["requires-python"]
    assert Requirement(f"python{minimum}").specifier.contains(python.split("=")[1] + ".0")


def test_diffusionkit_has_one_version() -> None:
    found = {}
    places = [*ROOT.glob("envs/*.sh"), *ROOT.glob("scripts/ditquant/backend/*.py")]
    for path in places:
        for pin in re.findall(r"diffusionkit==[\w.]+", path.read_text("utf-8")):
            found.setdefault(pin, []).append(path.name)
    assert list(found) == [DIFFUSIONKIT], found
    assert "setup.sh" in found[DIFFUSIONKIT]


@pytest.mark.parametrize("environment", WITH_DIFFUSIONKIT, ids=lambda path: path.stem)
def test_post_deploy_script_is_ready(environment: Path) -> None:
    script = environment.with_name(f"{environment.stem}.post-deploy.sh")
    assert os.access(script, os.X_OK)
    assert f"pip install --no-deps {DIFFUSIONKIT}" in script.read_text("utf-8")


def test_no_post_deploy_script_without_its_environment() -> None:
    owners = {path.name.removesuffix(".post-deploy.sh") for path in ROOT.glob("envs/*.post-*")}
    assert owners == {path.stem for path in WITH_DIFFUSIONKIT}


def test_version_is_the_same_everywhere() -> None:
    version = PYPROJECT["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    top, date = re.findall(r"^## \[(\d[^\]]*)\] - (\S+)", changelog, re.MULTILINE)[0]
    assert ditquant.__version__ == version
    assert citation["version"] == version
    assert top == version
    assert str(citation["date-released"]) == date


# Rules, their environments and what their scripts import


def rules() -> list[tuple[str, str, str]]:
    """(rule, environment, script) of every rule that runs a script."""
    found = []
    for path in [ROOT / "Snakefile", *sorted(ROOT.glob("rules/*.smk"))]:
        text = path.read_text("utf-8") if path.exists() else ""
        for block in re.split(r"^(?=(?:rule|checkpoint) )", text, flags=re.MULTILINE)[1:]:
            name = re.match(r"\w+ (\w+)", block)
            conda = re.search(r"^    conda:\s+\"(?:\.\./)?envs/(\S+)\"", block, re.MULTILINE)
            script = re.search(r"^    script:\s+\"(?:\.\./)?scripts/(\S+)\"", block, re.MULTILINE)
            if name and script:
                found.append((name[1], conda[1] if conda else "", script[1]))
    return found


IMPORT_NAMES = {"PIL": "pillow", "yaml": "pyyaml"}


def third_party_imports(path: Path) -> set[str]:
    """Distributions that importing a file loads: its top level, but nothing below a condition."""
    names = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").split(".")[0])
    names -= {*sys.stdlib_module_names, "ditquant", "demo_model", "snakemake"}
    return {canonicalize_name(IMPORT_NAMES.get(name, name)) for name in names}


def test_every_environment_holds_what_its_scripts_import() -> None:
    missing = []
    for rule, environment, script in rules():
        path = ROOT / "envs" / environment
        if not environment or not path.exists():
            missing.append(f"{rule}: no environment envs/{environment}")
            continue
        installed = {canonicalize_name(Requirement(line).name) for line in pip_lines(path)}
        if path in WITH_DIFFUSIONKIT:
            installed.add("diffusionkit")
        # the files around the work, which the code digest leaves out, are imported all the same
        around = [ROOT / "scripts" / "ditquant" / f"{name}.py" for name in ("job", "progress")]
        files = [file for file in code_files(ROOT / "scripts" / script) if file.suffix == ".py"]
        for file in [*files, *around]:
            for name in sorted(third_party_imports(file) - installed):
                missing.append(f"{rule}: {file.name} imports {name}, not in {environment}")
    assert missing == []


def test_model_jobs_import_neither_torch_nor_transformers() -> None:
    code = (
        "import json, sys\n"
        "from ditquant.backend import import_diffusionkit\n"
        "import_diffusionkit()\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    loaded = set(json.loads(run.stdout))
    assert {"mlx", "diffusionkit"} <= loaded
    heavy = {"torch", "transformers", "coremltools", "sklearn", "scipy", "matplotlib", "snakemake"}
    assert heavy.isdisjoint(loaded)


# conda, played by a script: Snakemake's side of it is real


CONDA = """#!/bin/sh
case "$1 $2" in
    "info --json") echo '{"conda_prefix": "@PREFIX@", "platform": "linux-64"}' ;;
    "--version ") echo "conda 25.1.0" ;;
    "config --get") echo '{"get": {"channel_priority": "strict"}}' ;;
    "env create")
        while [ "$1" != --prefix ]; do shift; done
        mkdir -p "$2/bin"
        printf '#!/bin/sh\\necho "$@" >>"@PREFIX@/python.log"\\n' >"$2/bin/python"
        chmod +x "$2/bin/python" ;;
    "clean -y") ;;
    *) echo "unexpected: conda $*" >&2; exit 1 ;;
esac
"""


def test_snakemake_creates_the_environments_and_runs_the_post_deploy_scripts(
    tmp_path: Path,
) -> None:
    prefix = tmp_path / "conda"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "bin" / "conda").write_text(CONDA.replace("@PREFIX@", str(prefix)))
    (prefix / "bin" / "conda").chmod(0o755)
    (prefix / "bin" / "activate").write_text('export PATH="$1/bin:$PATH"\n')
    names = [path.stem for path in ENVIRONMENTS]
    snakefile = [f"rule all:\n    input: {[f'{name}.txt' for name in names]!r}"]
    snakefile += [
        f"rule {path.stem}:\n    output: '{path.stem}.txt'\n    conda: {str(path)!r}\n"
        f"    shell: 'touch {{output}}'"
        for path in ENVIRONMENTS
    ]
    (tmp_path / "Snakefile").write_text("\n\n".join(snakefile) + "\n")

    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--sdm", "conda"]
    environment = {**os.environ, "PATH": f"{prefix / 'bin'}:{os.environ['PATH']}"}
    run = subprocess.run(
        [*command, "--conda-create-envs-only"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    calls = (prefix / "python.log").read_text().splitlines()
    assert calls == [f"-m pip install --no-deps {DIFFUSIONKIT}"] * len(WITH_DIFFUSIONKIT)
    run = subprocess.run(
        [*command, "-n"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("profile", ["default", "slurm"])
def test_profile_is_sound(profile: str) -> None:
    content = yaml.safe_load((ROOT / "profiles" / profile / "config.yaml").read_text("utf-8"))
    # `code` would redo everything after a checkout; the rules carry digests of their code instead
    assert content["rerun-triggers"] == ["mtime", "params", "input", "software-env"]
    assert content["rerun-incomplete"] is True
    assert content.get("resources") == ({"gpu": 1} if profile == "default" else None)


def test_slurm_plugin_is_named_with_its_pin() -> None:
    (pin,) = EXTRAS["slurm"]
    assert pin in (ROOT / "profiles" / "slurm" / "config.yaml").read_text("utf-8")
