#!/bin/sh
# Makes .venv from the lock: sh envs/setup.sh [cpu|cuda13]     (`make setup` calls this)
#
# A second call finds its stamp and costs a few milliseconds. Two files inside .venv carry the state:
#   ditquant-setup             what the finished environment was made from; written last
#   ditquant-setup-unfinished  written first, removed last: whoever finds it starts from nothing
# PYTHON=/path/to/python chooses the interpreter.
set -eu

cd "$(dirname "$0")/.."
extra=${1:-cpu}
venv=.venv
stamp=$venv/ditquant-setup
unfinished=$venv/ditquant-setup-unfinished
# Pinned also in pyproject.toml ([tool.ditquant]), where the reason stands.
diffusionkit=diffusionkit==0.5.2

# Settings that would send packages to another place than .venv, or hide its own.
unset PYTHONHOME PYTHONPATH PIP_TARGET PIP_PREFIX PIP_USER

fail() {
    printf 'ditquant set-up: %s\n' "$1" >&2
    exit 1
}

case $extra in
    cpu) lock=requirements.lock ;;
    cuda13) lock=requirements-cuda13.lock ;;
    *) fail "EXTRA=$extra is unknown; choose cpu (also for macOS, where it means Metal) or cuda13" ;;
esac

# Snakemake reads braces and brackets in the path of a workflow as its own.
case $(pwd) in
    *[][{}]*) fail "the path of this folder, $(pwd), holds braces or brackets: move it to one without them" ;;
esac

# The path belongs to it: a virtual environment does not survive being moved.
key="$extra $(cat pyproject.toml "$lock" envs/setup.sh | cksum) $(pwd)"

if [ -f "$stamp" ] && [ ! -f "$unfinished" ] && [ "$(cat "$stamp")" = "$key" ] &&
    "$venv/bin/python" -c '' 2>/dev/null; then
    exit 0
fi

# Prints the first interpreter that is new enough; on failure, what was found instead.
find_python() {
    found=
    if [ -n "${PYTHON:-}" ]; then set -- "$PYTHON"; else set -- python3.13 python3.12 python3.11 python3; fi
    for candidate; do
        # The name on the PATH may be a launcher whose Python is missing, so it has to run.
        if version=$("$candidate" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3]); sys.exit(sys.version_info < (3, 11))' 2>/dev/null); then
            echo "$candidate"
            return 0
        elif [ -n "$version" ]; then
            found="${found:+$found, }$candidate is $version"
        fi
    done
    echo "${found:-none that runs}"
    return 1
}

python=$(find_python) || fail "Python 3.11 or newer is needed (found: $python).
Install one, or say where it is: make setup PYTHON=/path/to/python3.12"

# Wheels of mlx exist for these; pip's own message would only say that no version matches.
problem=$("$python" -c '
import platform
system, machine, libc = platform.system(), platform.machine(), platform.libc_ver()
if system not in ("Linux", "Darwin"):
    print(f"MLX runs on Linux and on macOS, not on {system}")
elif system == "Darwin" and machine != "arm64":
    print(f"on macOS MLX needs Apple Silicon and a Python made for it (this one is {machine})")
elif system == "Darwin" and int(platform.mac_ver()[0].split(".")[0]) < 14:
    print(f"MLX needs macOS 14 or newer (this is {platform.mac_ver()[0]})")
elif libc[0] == "glibc" and tuple(map(int, libc[1].split(".")[:2])) < (2, 35):
    print(f"MLX needs glibc 2.35 or newer, as in Ubuntu 22.04 or Debian 12 (this is {libc[1]})")
')
[ -z "$problem" ] || fail "$problem"

# What an interrupted call left, what another EXTRA made (both bring their own libmlx), and what no
# longer runs is made anew. An environment that only follows an older lock is brought up to date.
if [ -e "$venv" ]; then
    made_for=$(cut -d ' ' -f 1 "$stamp" 2>/dev/null) || made_for=$extra
    if [ -f "$unfinished" ] || [ "$made_for" != "$extra" ] ||
        ! "$venv/bin/python" -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "ditquant set-up: $venv is unfinished, broken or made for something else; making it anew"
        rm -rf "$venv"
    fi
fi

mkdir -p "$venv"
: >"$unfinished"
rm -f "$stamp"

if [ ! -x "$venv/bin/python" ]; then
    echo "ditquant set-up: making $venv with $python"
    # Debian packs the module `venv` apart from Python.
    "$python" -m venv "$venv" ||
        fail "$python could not make a virtual environment; on Debian and Ubuntu: apt install python3-venv"
fi

# pip tells of every package; only a person at a terminal wants to see that.
if [ -t 1 ]; then quiet=; else quiet=--quiet; fi
pip() {
    "$venv/bin/python" -m pip install --disable-pip-version-check --no-input $quiet "$@" ||
        fail "pip could not install the packages (see above). Is the network there, and 3 GB of disk? The same command tries again."
}

echo "ditquant set-up: installing the packages of $lock (some minutes the first time)"
pip --requirement "$lock"
pip --no-deps "$diffusionkit"

# An import is the proof; the line names the device, and the BLAS that serves on a Linux CPU.
PYTHONPATH=scripts "$venv/bin/python" -c '
from ditquant.backend import describe_device, import_diffusionkit
import_diffusionkit()
print("ditquant set-up: done,", describe_device())
' || fail "the packages are installed, but MLX or DiffusionKit cannot be imported (see above).
Start again with: make clean-env setup"

printf '%s' "$key" >"$stamp"
rm -f "$unfinished"
