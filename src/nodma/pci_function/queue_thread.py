"""A queue's own threads: one that serves it, and a few that do for it what has to wait for a disk.

Compiled, none of them needs Python's lock while requests are the plain ones. Everything that is not a request, above
all registers, belongs to the main thread: it pauses the queues' threads while it changes anything that they look at.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from enum import Enum
from typing import Final

from nodma.errors import BadRing
from nodma.loop import interrupt
from nodma.ring import FAULT, QueueEngine, helper_main, queue_main

log = logging.getLogger(__name__)

_INTERRUPT_SECONDS: Final = 0.01
"""How long a thread that was asked to pause may be in a system call before a signal interrupts that."""
_FIRST_LOOK_SECONDS: Final = 0.0002
"""How long a pause waits before it looks again whether the thread is in a system call, at first."""
HELPERS: Final = 4
"""Threads of a queue that wait for the disk."""


class _State(Enum):
    """What a queue's thread does, as its owner knows it."""

    RUNNING = 0
    PARKED = 1
    """It waits to be let go on."""
    HELD = 2
    """It was to stop, and is in a system call, after which it waits to be let go on."""


class QueueThread:
    """Serves ``engine`` while it is resumed; made paused. Used by the main thread only.

    Raises OSError or RuntimeError, and leaves neither thread nor descriptor behind, if there are not enough of them.

    ``doorbell`` is an eventfd that wakes it, whoever signals it. ``wakeup_fd`` is signalled when the engine has an
    interrupt to give that it cannot give itself, and when it ended by itself: see :attr:`ended`.
    """

    def __init__(self, engine: QueueEngine, *, doorbell: int, wakeup_fd: int, poll_ns: int = 0) -> None:
        self.engine = engine
        self.ended = False
        """The engine met a fault, and is not resumed any more."""
        self._failed = False
        self._wakeup_fd = wakeup_fd
        self._control = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._state = _State.PARKED
        self._closing = False
        self._go = threading.Semaphore(0)
        self._parked = threading.Semaphore(0)
        self._signalling_since = -1  # the interrupt that it was busy with when last looked at
        engine.wakeup_fd = wakeup_fd
        engine.poll_for(poll_ns)
        self._threads: list[threading.Thread] = []
        try:
            engine.watch(self._control)
            engine.watch(doorbell)
            engine.start_helpers()
            self._start(threading.Thread(target=self._run, name="queue", daemon=True))
            for _ in range(HELPERS):
                self._start(threading.Thread(target=helper_main, args=(engine,), name="helper", daemon=True))
        except BaseException:
            self.cancel()
            self.end(time.monotonic())
            raise

    def _start(self, thread: threading.Thread) -> None:
        thread.start()
        self._threads.append(thread)

    def notify(self) -> None:
        """Have it look at its ring."""
        os.eventfd_write(self._control, 1)

    def resume(self) -> None:
        """Let it serve."""
        if self._state is _State.RUNNING or self.ended:
            return
        held = self._state is _State.HELD
        self._state = _State.RUNNING
        self.engine.resume()
        if held:
            self.notify()
        else:
            self._go.release()

    def pause(self) -> None:
        """Make it stop, and wait until it has stopped, or is in a system call after which it will. Helpers continue."""
        pause_all([self])

    def ask_to_pause(self) -> bool:
        """Ask it to stop, and do not wait; return whether there is anything to wait for."""
        if self._state is not _State.RUNNING:
            return False
        self.engine.pause()
        self.notify()
        return True

    def wait_paused(self, seconds: float) -> bool:
        """Wait so long for it to stop, as it was asked to; return whether it has."""
        deadline = time.monotonic() + seconds
        look = _FIRST_LOOK_SECONDS
        while not self.engine.in_call():
            left = deadline - time.monotonic()
            if self._parked.acquire(timeout=max(0.0, min(look, left))):
                self._state = _State.PARKED
                return True
            if left <= 0:
                return False
            look *= 2
        self._state = _State.HELD
        return True

    def look_after(self) -> None:
        """Interrupt a write to an eventfd that lasts since the last call of this. To be called about once a second."""
        count = self.engine.interrupts if self._state is _State.RUNNING and self.engine.signalling else -1
        if count >= 0 and count == self._signalling_since:
            self.interrupt()
        self._signalling_since = count

    def interrupt(self) -> None:
        """End a system call that keeps it: the write to an eventfd that was filled, and made to block."""
        if self.engine.signalling:
            interrupt(self._threads[0].ident or 0)

    @property
    def busy(self) -> bool:
        """Whether there are requests that were not returned. The thread is paused."""
        return self._state is _State.HELD or self.engine.outstanding > 0 or self.engine.ring.pending()

    def explain(self) -> BadRing:
        """Return why it ended."""
        return BadRing("the queue's thread failed; see the log") if self._failed else self.engine.explain()

    def cancel(self) -> None:
        """Begin nothing any more, end what is under way as soon as that can be, and do not wait for it."""
        self.engine.cancel()
        self.notify()

    def end(self, deadline: float) -> bool:
        """After :meth:`cancel`, wait until ``deadline`` (time.monotonic), and close all; return whether that was done.

        If not, a system call has not returned, and may still read and write the window: call it again later.
        """
        if self._state is not _State.PARKED:
            if not self._parked.acquire(timeout=max(0.0, deadline - time.monotonic())):
                self.interrupt()
                return False
            self._state = _State.PARKED
        self.engine.signal_fd = -1  # the vector may be another's by now
        if not self.engine.drain(max(0.0, deadline - time.monotonic())):
            return False
        self.engine.stop_helpers()
        self._closing = True
        self._go.release()
        for thread in self._threads:
            thread.join()
        os.close(self._control)
        self.engine.close()
        return True

    def _run(self) -> None:
        while True:
            self._go.acquire()
            if self._closing:
                return
            try:
                state = queue_main(self.engine)
            except Exception:
                log.exception("a queue's thread failed")
                self._failed = True
                state = FAULT
            if state == FAULT:
                self.ended = True
                os.eventfd_write(self._wakeup_fd, 1)
            self._parked.release()


def pause_all(threads: Sequence[QueueThread]) -> None:
    """Have queues' threads stop: ask all of them, then wait once for all.

    What keeps one is the write to an eventfd that its client filled and made blocking. After _INTERRUPT_SECONDS a
    signal ends such writes, in all threads at once.
    """
    waited_for = [thread for thread in threads if thread.ask_to_pause()]
    patience = time.monotonic() + _INTERRUPT_SECONDS
    while waited_for := [
        thread for thread in waited_for if not thread.wait_paused(max(0.0, patience - time.monotonic()))
    ]:
        for thread in waited_for:
            thread.interrupt()
        patience = time.monotonic() + _INTERRUPT_SECONDS
