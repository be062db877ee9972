"""Put on a job's PYTHONPATH: its SD3-medium is the small one, as soon as DiffusionKit is loaded."""

import importlib.abc
import importlib.machinery
import sys

from support.small_tables import small_tables

NAME = "diffusionkit.mlx.model_io"


class _Shrink(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != NAME:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module

        def run_and_shrink(module):
            run(module)
            vars(module).update(small_tables(module))

        spec.loader.exec_module = run_and_shrink
        return spec


sys.meta_path.insert(0, _Shrink())
