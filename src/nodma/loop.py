"""The loop of a process: descriptors, timers, and calls from other threads, one after another on one thread.

There is one a process, and everything that its main thread does is a callback of it. Callbacks must not wait. What one
of them raises is logged and ends that one callback; the loop, and whatever else it watches, goes on.

Some system calls wait as long as a client pleases: a write to an eventfd that the client filled and made blocking, the
close of a socket that lingers. No check beforehand prevents that, because the client shares the file and can change it
at any time. But a signal ends such a wait. So while a callback runs on the main thread, a timer sends SIGALRM every
TICK_SECONDS. A loop that waits for something to do has no timer.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import os
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

log = logging.getLogger(__name__)

Callback = Callable[[], None]

TICK_SECONDS: Final = 0.02
"""How long an interruptible system call can keep the main thread."""
_FOREVER: Final = -1.0


def interrupt(thread: int) -> None:
    """End an interruptible system call of the thread of that identifier, in a process whose main thread runs a loop.

    In others it does nothing: the signal could end the process, or mean something to somebody.
    """
    handler = signal.getsignal(signal.SIGALRM)
    if isinstance(getattr(handler, "__self__", None), Loop):
        signal.pthread_kill(thread, signal.SIGALRM)


class Handle:
    """A descriptor that a loop watches. Made by :meth:`Loop.add_reader`; cancel it before closing the descriptor."""

    __slots__ = ("_callback", "_events", "_loop", "_watched", "fd", "patient")

    def __init__(self, loop: Loop, fd: int, callback: Callback, patient: bool) -> None:
        self.fd = fd
        self.patient = patient
        self._loop = loop
        self._callback = callback
        self._events = select.EPOLLIN
        self._watched = False
        self.resume()

    @property
    def watched(self) -> bool:
        """Whether the loop watches it, which means it is neither paused nor cancelled."""
        return self._watched

    def pause(self) -> None:
        """Stop watching, until :meth:`resume`."""
        if self._watched:
            self._watched = False
            self._loop._unwatch(self)

    def resume(self) -> None:
        """Watch again."""
        if not self._watched:
            self._loop._watch(self, self._events)
            self._watched = True

    cancel = pause

    def want_write(self, write: bool) -> None:
        """Wait until the descriptor can be written (``write``), or until it can be read, as at first."""
        events = select.EPOLLOUT if write else select.EPOLLIN
        if events != self._events:
            self._events = events
            if self._watched:
                self._loop._rewatch(self, events)


class Timer:
    """A call that a loop will make. Made by :meth:`Loop.call_later`."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callback) -> None:
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        """Do not make the call."""
        self.callback = None


class Loop:
    """Waits for descriptors and for time to pass, and calls back. Raises OSError if there is no descriptor for it."""

    def __init__(self) -> None:
        self.stopping = False
        """Whether :meth:`stop` was called."""
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._readers: dict[int, Handle] = {}
        self._impatient = 0
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._soon: deque[Callback] = deque()
        self._from_threads: deque[Callback] = deque()
        self._ticks = self._ticking = self._waiting = False
        self._handler_before: Any = None

    def add_reader(self, fd: int, callback: Callback, *, patient: bool = False) -> Handle:
        """Call ``callback`` whenever ``fd`` can be read (level-triggered), or its other end is gone.

        A ``patient`` one can bear to be called some milliseconds late: see :meth:`alone`. Raises OSError if the
        descriptor cannot be watched.
        """
        return Handle(self, fd, callback, patient)

    def alone(self, reader: Handle) -> bool:
        """Return whether all others that are watched are patient, so that ``reader`` may hold the loop a little."""
        return self._impatient == (reader.watched and not reader.patient)

    def call_later(self, seconds: float, callback: Callback) -> Timer:
        """Call ``callback`` once, after ``seconds``."""
        timer = Timer(callback)
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), timer))
        return timer

    def call_soon(self, callback: Callback) -> None:
        """Call ``callback`` in the next turn, which does not wait. To be used by the loop's own thread."""
        self._soon.append(callback)

    def call_soon_threadsafe(self, callback: Callback) -> None:
        """Call ``callback`` soon; for other threads and for signal handlers."""
        self._from_threads.append(callback)
        self._signal()

    def run(self) -> None:
        """Call back until :meth:`stop`. On the main thread, the tick protects it from then on, until :meth:`close`."""
        if not self._ticks and threading.current_thread() is threading.main_thread():
            self._handler_before = signal.signal(signal.SIGALRM, self._on_tick)
            self._ticks = True
        while not self.stopping:
            self.step()

    def stop(self) -> None:
        """Have :meth:`run` return soon. For any thread, and for signal handlers."""
        self.stopping = True
        self._signal()

    def step(self, timeout: float | None = None) -> bool:
        """Wait for something to happen, for ``timeout`` seconds at most (None: as long as it takes), and handle it.

        Returns whether anything did.
        """
        soon, self._soon = self._soon, deque()
        self._waiting = True
        events = self._epoll.poll(0 if soon else self._wait_seconds(timeout))
        self._waiting = False
        if self._ticks and not self._ticking:
            self._ticking = True
            signal.setitimer(signal.ITIMER_REAL, TICK_SECONDS, TICK_SECONDS)
        # Looked up before the first callback: a later one's descriptor may be closed by then, and its number reused.
        ready = [self._readers.get(fd) for fd, _ in events]
        for reader in ready:
            if reader is None:
                self._woken()
            elif reader.watched and not self._call(reader._callback):
                reader.cancel()
        for callback in soon:
            self._call(callback)
        return self._call_timers() or bool(events or soon)

    def close(self) -> None:
        """Close the loop's own descriptors, and end its tick."""
        if self._ticks:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._handler_before or signal.SIG_DFL)
            self._ticks = self._ticking = False
        self._epoll.close()
        if self._wake >= 0:
            os.close(self._wake)
            self._wake = -1

    def _on_tick(self, *_: object) -> None:
        if self._waiting:
            self._ticking = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _wait_seconds(self, timeout: float | None) -> float:
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        due = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
        waits = [seconds for seconds in (timeout, due) if seconds is not None]
        return min(waits) if waits else _FOREVER

    def _call_timers(self) -> bool:
        called = False
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            callback = heapq.heappop(self._timers)[2].callback
            if callback is not None:
                called = True
                self._call(callback)
        return called

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        for _ in range(len(self._from_threads)):  # those that come meanwhile signal again
            self._call(self._from_threads.popleft())

    def _signal(self) -> None:
        wake = self._wake
        if wake >= 0:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_write(wake, 1)

    @staticmethod
    def _call(callback: Callback) -> bool:
        try:
            callback()
        except Exception:
            with contextlib.suppress(Exception):  # out of memory, the log may fail as well
                log.exception("a callback of the loop failed")
            return False
        return True

    def _watch(self, reader: Handle, events: int) -> None:
        self._epoll.register(reader.fd, events)
        self._readers[reader.fd] = reader
        self._impatient += not reader.patient

    def _rewatch(self, reader: Handle, events: int) -> None:
        self._epoll.modify(reader.fd, events)

    def _unwatch(self, reader: Handle) -> None:
        del self._readers[reader.fd]
        self._impatient -= not reader.patient
        with contextlib.suppress(OSError):  # closed already: nothing is left to be unregistered
            self._epoll.unregister(reader.fd)
