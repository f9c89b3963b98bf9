"""Split virtqueues over a window, both ends, and the engines that serve them; compiled where there was a compiler.

See :mod:`nodma.builds` for what is compiled, and which build is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nodma.builds import is_compiled, load
from nodma.ring.layout import RingLayout
from nodma.ring.state import BATCH, BUSY, FAULT, IDLE, PAUSED, TURNS

if TYPE_CHECKING:
    from nodma.ring.device_end import CHAIN_LIMIT, DeviceRing, Request
    from nodma.ring.driver_end import DriverRing, Parts
    from nodma.ring.engine import QueueEngine
    from nodma.ring.thread_main import helper_main, queue_main
else:
    _device_end = load("nodma.ring.device_end")
    _driver_end = load("nodma.ring.driver_end")
    _engine = load("nodma.ring.engine")
    _thread_main = load("nodma.ring.thread_main")
    CHAIN_LIMIT = _device_end.CHAIN_LIMIT
    DeviceRing = _device_end.DeviceRing
    Request = _device_end.Request
    DriverRing = _driver_end.DriverRing
    Parts = _driver_end.Parts
    QueueEngine = _engine.QueueEngine
    helper_main, queue_main = _thread_main.helper_main, _thread_main.queue_main

COMPILED: bool = is_compiled(load("nodma.ring.device_end")) and is_compiled(load("nodma.ring.driver_end"))

__all__ = [
    "BATCH",
    "BUSY",
    "CHAIN_LIMIT",
    "COMPILED",
    "FAULT",
    "IDLE",
    "PAUSED",
    "TURNS",
    "DeviceRing",
    "DriverRing",
    "Parts",
    "QueueEngine",
    "Request",
    "RingLayout",
    "helper_main",
    "queue_main",
]
