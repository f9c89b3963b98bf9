"""Split virtqueues over a window, both ends; compiled where that is possible (:mod:`nodma.builds`).

Where the compiled modules were built, they are used; else, or with ``NODMA_PURE=1`` in the environment,
the same files run interpreted.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

from nodma import builds
from nodma.builds import is_compiled
from nodma.ring.layout import RingLayout

if TYPE_CHECKING:
    from nodma.ring.device_end import CHAIN_LIMIT, DeviceRing, Request
    from nodma.ring.driver_end import DriverRing, Parts


def load_interpreted(name: str) -> ModuleType:
    """Load ``nodma.ring.<name>`` from its source, whether or not a compiled build of it lies beside it."""
    return builds.load_interpreted(f"{__name__}.{name}")


if not TYPE_CHECKING:
    _device_end = builds.load(f"{__name__}.device_end")
    _driver_end = builds.load(f"{__name__}.driver_end")
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
