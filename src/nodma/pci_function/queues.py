"""The queues of a function: what the driver set up of each, and what is left of those that were reset."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from nodma.device.base import Engine, Queue
from nodma.pci_function.queue_thread import QueueThread
from nodma.spec.virtio_pci import NO_VECTOR

log = logging.getLogger(__name__)

RESET_SECONDS: Final = 1.0
"""How long a reset keeps everybody else waiting at most. What is still under way then is waited for by the driver."""


@dataclass(slots=True, eq=False)
class VirtQueue:
    """What the driver set up of one queue. ``desc``, ``driver``, ``device`` are its three addresses.

    While it is enabled it has an engine, and a ``thread`` of its own if the function has such.
    """

    queue: Queue
    size: int = 0
    vector: int = NO_VECTOR
    enabled: bool = False
    desc: int = 0
    driver: int = 0
    device: int = 0
    polled: tuple[int, int] = (0, 0)
    """Without a thread, when polling: requests taken so far, and when (ns) the last of them was."""
    engine: Engine | None = None
    thread: QueueThread | None = None

    def __post_init__(self) -> None:
        self.size = self.queue.size

    def reset(self) -> None:
        """Forget it all."""
        self.size, self.vector, self.enabled = self.queue.size, NO_VECTOR, False
        self.desc = self.driver = self.device = 0
        self.polled = 0, 0

    def close(self) -> None:
        """Close its engine; its thread, if it has one, has not served it."""
        thread, engine = self.thread, self.engine
        self.thread = self.engine = None
        if thread is not None:
            thread.cancel()
            thread.end(time.monotonic())
        elif engine is not None:
            engine.close()


@dataclass(slots=True)
class Counters:
    """What happened since the process began, but for queues that are enabled: their engines count on."""

    requests: int = 0
    interrupts: int = 0
    """Signalled by the queues' engines."""
    notifications: int = 0
    resets: int = 0
    needs_reset: int = 0
    outside: int = 0
    """Addresses outside the window that were given, caught, and not followed."""
    refused: int = 0
    """Times that FEATURES_OK was refused."""


class RetiredThreads:
    """The threads of queues that were reset while a system call kept them: they end when it returns."""

    def __init__(self) -> None:
        self._names: dict[QueueThread, str] = {}

    def retire(self, queues: Iterable[VirtQueue], counters: Counters) -> None:
        """Take the threads of ``queues``, and end them: all are asked at once, and waited for RESET_SECONDS in all."""
        threads = {queue.thread: queue for queue in queues if queue.thread is not None}
        for thread in threads:
            thread.cancel()
        deadline = time.monotonic() + RESET_SECONDS
        for thread, queue in threads.items():
            name = queue.queue.name
            if not thread.end(deadline):
                log.warning("queue %s: cannot cancel a request; the reset ends when its disk has answered", name)
                self._names[thread] = name
            counters.requests += thread.engine.requests
            counters.interrupts += thread.engine.interrupts
            queue.thread = queue.engine = None

    def end(self) -> bool:
        """End those whose system call has returned; return whether none is left."""
        for thread in tuple(self._names):
            if thread.end(0.0):
                del self._names[thread]
        return not self._names

    @property
    def unfinished(self) -> str:
        """What is under way because a disk does not answer; "" if nothing."""
        if not self._names:
            return ""
        return f"requests of {', '.join(self._names.values())} are still under way: their disk does not answer"
