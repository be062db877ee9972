"""Imports DiffusionKit 0.5.2 without what it does not need, and hands its loaders local files.

`import diffusionkit.mlx` pulls argmaxtools, and with it torch, coremltools and wandb (1.2 GB,
8.5 s), for a logger, two mixin classes and a unit conversion; and `transformers` (2 s) for names
that only the text encoders use. Stand-ins for those few names are all it needs.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any


class _LazyName:
    """A name of `transformers` that is imported when one of its attributes is first used."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(getattr(importlib.import_module("transformers"), self._name), attribute)


class _LazyTransformers(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _LazyName(name)


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
    return {
        "argmaxtools": argmaxtools,
        "argmaxtools.utils": utils,
        "argmaxtools.test_utils": test_utils,
        "diffusionkit.utils": kit_utils,
    }


@cache
def import_diffusionkit() -> ModuleType:
    """The package `diffusionkit.mlx`, imported light; its submodules are then imported as usual.

    Raises:
        ImportError: DiffusionKit is not installed (it is installed without its dependencies).
    """
    if importlib.util.find_spec("diffusionkit") is None:
        raise ImportError("DiffusionKit is missing: pip install --no-deps diffusionkit==0.5.2")
    sys.modules.update(_stand_ins())
    loaded = sys.modules.get("transformers")
    sys.modules["transformers"] = loaded or _LazyTransformers("transformers")
    try:
        return importlib.import_module("diffusionkit.mlx")
    finally:
        if loaded is None:
            del sys.modules["transformers"]


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
