"""The compiled modules, and the same files interpreted.

Where the compiled modules were built, they are used; else, or with ``NODMA_PURE=1`` in the environment, their sources
run as they stand. Tests run both side by side.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Final

_RING: Final = ("nodma.ring.device_end", "nodma.ring.engine")

COMPILED_MODULES: Final[Mapping[str, tuple[str, ...]]] = {
    "nodma.ring.device_end": (),
    "nodma.ring.driver_end": (),
    "nodma.ring.engine": ("nodma.ring.device_end",),
    "nodma.ring.thread_main": _RING,
    "nodma.device.blk_engine": _RING,
    "nodma.vfio_user.stream": (),
}
"""What setup.py compiles, and which others of these each needs, in the order to load them."""

_ROOT: Final = Path(__file__).parents[1]

_interpreted: Final[dict[str, ModuleType]] = {}


def load_interpreted(name: str) -> ModuleType:
    """Load a module from its source, whether or not a compiled build of it lies beside it.

    What it imports of its kind is interpreted as well; who imports it by its name still gets the compiled build.
    """
    wanted = (*COMPILED_MODULES[name], name)
    before = {module: sys.modules.get(module) for module in wanted}
    try:
        for module in wanted:
            sys.modules[module] = _interpreted.get(module) or _execute(module)
    finally:
        for module, compiled in before.items():
            if compiled is None:
                sys.modules.pop(module, None)
            else:
                sys.modules[module] = compiled
    return _interpreted[name]


def _execute(name: str) -> ModuleType:
    path = _ROOT.joinpath(*name.split(".")).with_suffix(".py")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    _interpreted[name] = module
    return module


def load(name: str) -> ModuleType:
    """Return a module in the build that this process uses, and have every later import find that build."""
    if os.environ.get("NODMA_PURE", "0") not in ("", "0"):
        sys.modules[name] = load_interpreted(name)
    return importlib.import_module(name)


def is_compiled(module: ModuleType) -> bool:
    """Return whether a module is the compiled build."""
    return not str(module.__file__).endswith(".py")
