"""A limit on how much is logged: what a guest does wrong, it can do a million times a second."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

BURST: Final = 100
"""Records in a row before the limit holds."""
PERIOD: Final = 10.0
"""Seconds until as many are let through again."""


class RateLimit(logging.Filter):
    """Let ``BURST`` records through in each ``PERIOD``; the first after that says how many were left out."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._until = 0.0
        self._passed = 0
        self._left_out = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to log the record."""
        now = self._clock()
        if now >= self._until:
            self._until, self._passed = now + PERIOD, 0
            if self._left_out:
                record.msg = f"{record.getMessage()} ({self._left_out} earlier messages were suppressed)"
                record.args = ()
                self._left_out = 0
        self._passed += 1
        if self._passed > BURST:
            self._left_out += 1
            return False
        return True
