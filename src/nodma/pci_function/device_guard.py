"""The one guard around a device model's own code: what it raises fails the device, and goes no further.

A device model may be anybody's. A bug in it must neither end the process, which serves others too, nor leave a device
running that did not start: the device sets DEVICE_NEEDS_RESET, with the reason.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType

from nodma.builds import COMPILED_MODULES
from nodma.device.base import Engine
from nodma.errors import NodmaError, UsageError
from nodma.ring import QueueEngine

log = logging.getLogger(__name__)


class Guarded:
    """Runs the block of a ``with``: what it raises is logged and handed to ``fail`` as a reason.

    ``what`` names the block in that reason. SystemExit counts as an error of the device; KeyboardInterrupt passes.
    """

    __slots__ = ("_fail", "_what")

    def __init__(self, fail: Callable[[str], None], what: str) -> None:
        self._fail = fail
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> bool:
        if not isinstance(error, (Exception, SystemExit)):
            return False
        if not isinstance(error, (OSError, NodmaError)):  # a bug, of which its author wants to see more than a line
            log.error("%s failed", self._what, exc_info=error)
        self._fail(f"{self._what} failed: {type(error).__name__}: {error}".removesuffix(": "))
        return True


def check_engine(engine: Engine) -> None:
    """Raise UsageError, with a message for the author, unless both builds can serve a queue by this engine."""
    name = type(engine).__name__
    if isinstance(engine, QueueEngine):
        if type(engine).__module__ not in COMPILED_MODULES:
            raise UsageError(
                f"{name} is a Python subclass of QueueEngine, whose methods only compiled code calls: handle requests"
                " in a method of the device, or write a class that implements nodma.device.base.Engine"
            )
    elif not isinstance(engine, Engine):
        raise UsageError(f"{name} does not implement nodma.device.base.Engine")
