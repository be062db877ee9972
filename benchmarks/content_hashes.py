"""Hashes of what a run drew, learned and measured, without seals, records, dates and times.

    benchmarks/content_hashes.py results/demo > before.json
    benchmarks/content_hashes.py results/demo --compare before.json

Two runs of one configuration by two releases, on one machine, have equal hashes where both computed
the same. Exit status 1 and the names of the files if they have not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from ditquant.artifacts import load_tensors  # noqa: E402
from ditquant.backend import mx  # noqa: E402
from ditquant.provenance import KEY  # noqa: E402
from ditquant.seals import SEAL_KEYS, header_bytes  # noqa: E402

# Their content is words, seconds or inodes.
_LEFT_OUT = ("benchmarks", "logs", ".records", "report", "plots", "tokenizer")


def _tensors(path: Path) -> bytes:
    kind = json.loads(header_bytes(path))["__metadata__"]["ditquant"]
    digest = hashlib.sha256()
    for name, array in sorted(load_tensors(path, kind).items()):
        bits = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(np.array(bits).tobytes())
    return digest.digest()


def _document(path: Path) -> bytes:
    document: dict[str, Any] = json.loads(path.read_bytes())
    content = {key: value for key, value in document.items() if key not in {*SEAL_KEYS, KEY}}
    return json.dumps(content, sort_keys=True).encode()


def content_hash(path: Path) -> str:
    """16 hexadecimal digits of the tensors, pixels or numbers in a file."""
    if path.suffix == ".safetensors":
        content = _tensors(path)
    elif path.suffix == ".json":
        content = _document(path)
    else:
        content = np.asarray(Image.open(path)).tobytes()
    return hashlib.sha256(content).hexdigest()[:16]


def content_hashes(results: Path) -> dict[str, str]:
    """Path below a run's folder -> hash, of tensors, documents and pictures."""
    return {
        str(path.relative_to(results)): content_hash(path)
        for path in sorted(results.rglob("*"))
        if path.suffix in (".safetensors", ".json", ".png")
        and not set(path.relative_to(results).parts) & set(_LEFT_OUT)
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, help="a run's folder, results/demo")
    parser.add_argument("--compare", type=Path, help="hashes of another run")
    options = parser.parse_args()
    found = content_hashes(options.results)
    if options.compare is None:
        print(json.dumps(found, indent=1))
        return 0
    other = json.loads(options.compare.read_text("utf-8"))
    differing = [name for name in {**other, **found} if other.get(name) != found.get(name)]
    for name in differing:
        print(f"differs: {name}")
    print(f"{len(found) - len(set(differing) & set(found))} of {len(found)} files are the same")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
