"""What signals do to a process, whatever its main thread is waiting for.

SIGTERM, SIGINT and SIGHUP end it in order: requests are finished, images are synced. Not later than a deadline, or at
once with a second of these signals, it ends as it is. SIGUSR1 has the devices look at their back ends again.

Python runs a signal's handler in the main thread only, when no system call keeps it. So the handlers here do nothing,
and a thread of its own reads which signals came, from the descriptor that Python writes them to.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

log = logging.getLogger(__name__)

STOP_SECONDS: Final = 30.0
"""How long an orderly end may take."""
_SAME_SECONDS: Final = 1.0
"""Signals to end that come within this time of the first are the same wish: systemd, a terminal, and a supervisor may
each send one."""
_RETRY_SECONDS: Final = 0.1
_STOP: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
_HANDLED: Final = (*sorted(_STOP), signal.SIGUSR1)


class Signals:
    """Handles signals while it is entered, by the main thread; once one asked the process to end, until it has ended.

    ``stop``, ``reload`` and ``give_up`` are called by another thread. ``give_up``, called with the reason, is to end
    the process; it is called ``seconds`` after ``stop``, or with a second signal, if the block was not left by then.
    """

    def __init__(
        self,
        *,
        stop: Callable[[], None],
        reload: Callable[[], None],
        give_up: Callable[[str], None],
        seconds: float = STOP_SECONDS,
    ) -> None:
        self._stop = stop
        self._reload = reload
        self._give_up = give_up
        self._seconds = seconds
        self._begun = 0.0
        """When it was first asked to end, by time.monotonic()."""
        self._before: dict[int, Any] = {}
        self._read = self._write = self._wakeup_before = -1
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)

    def __enter__(self) -> Self:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in _HANDLED:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # ignored: by nohup(1)
                self._before[number] = signal.signal(number, lambda *_: None)
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if not self._begun:  # else it is ending as asked, and one more signal must not change how
            for number, handler in self._before.items():
                signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._write)  # the thread reads the end of the pipe, and ends
        self._thread.join()
        os.close(self._read)

    def _watch(self) -> None:
        # The main thread gets them, unless the kernel keeps it: then this one does.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - {*_STOP, signal.SIGUSR1})
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        while True:
            try:
                if not self._wait(poll):
                    return
            except Exception:  # out of memory, as a rule: the next signal is to be handled all the same
                time.sleep(_RETRY_SECONDS)

    def _wait(self, poll: select.poll) -> bool:
        """Wait for a signal or the deadline, and act on it; return False at the end."""
        left = max(0.0, self._begun + self._seconds - time.monotonic()) * 1000 if self._begun else None
        if not poll.poll(left):
            self._end(f"it was still running {self._seconds:g} s after it was asked to end")
        try:
            number = os.read(self._read, 1)
        except BlockingIOError:
            return True
        if number:
            self._handle(number[0])
        return bool(number)

    def _handle(self, number: int) -> None:
        if number == signal.SIGUSR1:
            _try(self._reload)
        elif number not in _STOP:
            return
        elif not self._begun:
            self._begun = time.monotonic()
            _try(self._stop)
        elif time.monotonic() - self._begun > _SAME_SECONDS:
            self._end(f"{signal.Signals(number).name} arrived a second time")

    def _end(self, reason: str) -> None:
        try:
            self._give_up(reason)
        except BaseException:  # whatever keeps it from being said
            os._exit(1)


def _try(call: Callable[[], None]) -> None:
    try:
        call()
    except Exception:  # the next signal is to be handled all the same
        log.exception("a signal could not be handled")
