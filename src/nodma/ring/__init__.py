"""Split virtqueues over a window, both ends: the only code of nodma that is compiled.

Where the compiled modules were built, they are used; else, or with ``NODMA_PURE=1`` in the environment,
the same files run interpreted.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from nodma.ring.layout import RingLayout

if TYPE_CHECKING:
    from nodma.ring.device_end import CHAIN_LIMIT, DeviceRing, Request
    from nodma.ring.driver_end import DriverRing, Parts


def load_interpreted(name: str) -> ModuleType:
    """Load ``nodma.ring.<name>`` from its source, whether or not a compiled build of it lies beside it."""
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"{__name__}.{name}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _load(name: str) -> ModuleType:
    if os.environ.get("NODMA_PURE", "0") not in ("", "0"):
        return load_interpreted(name)
    return importlib.import_module(f"{__name__}.{name}")


def is_compiled(module: ModuleType) -> bool:
    """Tell whether a module of the ring is the compiled build."""
    return not str(module.__file__).endswith(".py")


if not TYPE_CHECKING:
    _device_end = _load("device_end")
    _driver_end = _load("driver_end")
    CHAIN_LIMIT = _device_end.CHAIN_LIMIT
    DeviceRing = _device_end.DeviceRing
    Request = _device_end.Request
    DriverRing = _driver_end.DriverRing
    Parts = _driver_end.Parts

    COMPILED = is_compiled(_device_end) and is_compiled(_driver_end)
else:
    COMPILED: bool

__all__ = [
    "CHAIN_LIMIT",
    "COMPILED",
    "DeviceRing",
    "DriverRing",
    "Parts",
    "Request",
    "RingLayout",
    "is_compiled",
    "load_interpreted",
]
