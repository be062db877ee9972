"""Imports DiffusionKit 0.5.2 without what it does not need, and hands its loaders local files.

`import diffusionkit.mlx` pulls argmaxtools, and with it torch, coremltools and wandb (1.2 GB,
8.5 s), for a logger, two mixin classes and a unit conversion; and `transformers` (2 s) for T5's
configuration and tokenizer, which `models.t5` reads without it. Stand-ins for those few names are
all it needs.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any

import mlx.core as mx

from ..job_times import counted_as


def _stand_ins() -> dict[str, ModuleType]:
    argmaxtools = ModuleType("argmaxtools")
    argmaxtools.__path__ = []
    utils = ModuleType("argmaxtools.utils")
    utils.get_logger = lambda name, level=logging.WARNING: logging.getLogger(name)  # type: ignore[attr-defined]
    test_utils = ModuleType("argmaxtools.test_utils")
    test_utils.AppleSiliconContextMixin = type("AppleSiliconContextMixin", (), {})  # type: ignore[attr-defined]
    test_utils.InferenceContextSpec = type("InferenceContextSpec", (), {})  # type: ignore[attr-defined]
    kit_utils = ModuleType("diffusionkit.utils")
    kit_utils.bytes2gigabytes = lambda size: size / 1024**3  # type: ignore[attr-defined]
    transformers = ModuleType("transformers")
    transformers.T5Config = transformers.AutoTokenizer = None  # type: ignore[attr-defined]
    return {
        "argmaxtools": argmaxtools,
        "argmaxtools.utils": utils,
        "argmaxtools.test_utils": test_utils,
        "diffusionkit.utils": kit_utils,
        "transformers": transformers,
    }


def with_names(module: ModuleType, **names: Any) -> SimpleNamespace:
    """A module's names, some of them replaced."""
    return SimpleNamespace(**{**vars(module), **names})


def _leave_memory_limits(t5: ModuleType) -> None:
    """Keeps T5's encoder from setting Metal's memory limit to the machine's memory in each call.

    Elsewhere there is no such number (`KeyError: 'memory_size'`), and there it would undo a limit
    that a user has set.
    """
    metal = SimpleNamespace(
        set_memory_limit=lambda limit: None, device_info=lambda: {"memory_size": 0}
    )
    t5.mx = with_names(mx, metal=metal)  # type: ignore[attr-defined]


@cache
@counted_as("start")
def import_diffusionkit() -> ModuleType:
    """The package `diffusionkit.mlx`, imported light; its submodules are then imported as usual.

    Raises:
        ImportError: DiffusionKit is not installed (it is installed without its dependencies).
    """
    if importlib.util.find_spec("diffusionkit") is None:
        raise ImportError("DiffusionKit is missing: pip install --no-deps diffusionkit==0.5.2")
    before = sys.modules.get("transformers")
    sys.modules.update(_stand_ins())
    try:
        kit = importlib.import_module("diffusionkit.mlx")
    finally:
        del sys.modules["transformers"]
        if before is not None:
            sys.modules["transformers"] = before
    _leave_memory_limits(importlib.import_module("diffusionkit.mlx.t5"))
    return kit


@contextmanager
def hub_files(resolve: Callable[[str, str], str | None], **names: Any) -> Iterator[ModuleType]:
    """Within the context, DiffusionKit's loaders find files through `resolve(repo, file)`.

    `resolve` returns a local path, or None for «ask the Hugging Face hub». Loaders always fetch the
    hub's `config.json`, even for a local checkpoint, and never read it: that request is answered
    with an empty path unless `resolve` knows better. `names` replaces module globals of
    `diffusionkit.mlx.model_io` meanwhile (it reads the VAE's configuration from a global class).
    """
    import_diffusionkit()
    model_io = importlib.import_module("diffusionkit.mlx.model_io")
    from_hub = model_io.hf_hub_download

    def download(repo: str, file: str, *args: Any, **options: Any) -> str:
        path = resolve(repo, file)
        return from_hub(repo, file, *args, **options) if path is None else path

    replaced = {"hf_hub_download": download, **names}
    before = {name: getattr(model_io, name) for name in replaced}
    for name, value in replaced.items():
        setattr(model_io, name, value)
    try:
        yield model_io
    finally:
        for name, value in before.items():
            setattr(model_io, name, value)
