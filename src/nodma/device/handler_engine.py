"""The engine of a queue whose requests a method of the device handles, one at a time or a batch at a time."""

from __future__ import annotations

from collections.abc import Callable

from nodma.errors import BadRing
from nodma.ring import BATCH, BUSY, FAULT, IDLE, DeviceRing, Request


class HandlerEngine:
    """Implements :class:`~nodma.device.base.Engine` over ``ring``; ``handler`` gets the requests of a batch."""

    def __init__(self, ring: DeviceRing, handler: Callable[[list[Request]], None]) -> None:
        self.ring = ring
        self.requests = 0
        self.interrupts = 0
        self.wanted = False
        self._handler = handler
        self._error: BadRing | None = None

    def serve(self, turns: int) -> int:
        """Handle up to ``turns`` batches. What the handler raises propagates; its batch is not returned."""
        ring = self.ring
        for _ in range(turns):
            try:
                batch = ring.pop(BATCH)
            except BadRing as error:
                self._error = error
                return FAULT
            if not batch:
                return IDLE
            self._handler(batch)
            ring.push(batch)
            self.requests += len(batch)
            if ring.publish():
                self.wanted = True
        return BUSY

    def arm(self) -> bool:
        """Ask for a notification of the next request; return whether one came before that took effect."""
        return self.ring.arm()

    def disarm(self) -> None:
        """Ask for no notifications."""
        self.ring.disarm()

    def rebase(self, base: int) -> None:
        """Follow the window to another bus address."""
        self.ring.rebase(base)

    def explain(self) -> BadRing:
        """Return what was wrong, after FAULT."""
        assert self._error
        return self._error

    def close(self) -> None:
        """Nothing is open."""
