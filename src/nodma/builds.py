"""Modules that Cython compiles where it can: which build of one is loaded.

Where the compiled module was built, it is used; else, or with ``NODMA_PURE=1`` in the environment, its
source runs interpreted.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType


def load(name: str) -> ModuleType:
    """Load a module by its whole name, in the build that is to be used."""
    if os.environ.get("NODMA_PURE", "0") not in ("", "0"):
        return load_interpreted(name)
    return importlib.import_module(name)


def load_interpreted(name: str) -> ModuleType:
    """Load a module from its source, whether or not a compiled build of it lies beside that."""
    package, _, last = name.rpartition(".")
    directory = importlib.import_module(package).__path__[0]
    spec = importlib.util.spec_from_file_location(name, Path(directory, f"{last}.py"))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def is_compiled(module: ModuleType) -> bool:
    """Tell whether a module is the compiled build."""
    return not str(module.__file__).endswith(".py")
