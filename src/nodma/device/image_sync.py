"""Make what was written to an image durable: in one place, one sync at a time, and a failure is never forgotten.

Linux reports a failed write-back once to each open file description, to whoever syncs it first; what was lost stays
lost. So an image has one description that nothing but this thread syncs, and after a failure every further sync fails
for as long as the process lives. Whoever waits for a sync can give up: a disk that hangs keeps only this thread.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import Final

log = logging.getLogger(__name__)

_CHECK_SECONDS: Final = 0.05
"""How often a waiter looks whether it is still to wait."""


class Syncer:
    """Syncs the open file ``fd``, which nobody else syncs; ``name`` is for messages. Its thread starts when needed."""

    def __init__(self, fd: int, name: str) -> None:
        self.error = 0
        """The errno of the first sync that failed, 0 if none did."""
        self.lost: Final = memoryview(bytearray(1))
        """One byte, 1 once a sync has failed: for compiled code."""
        self._fd = fd
        self._name = name
        self._condition = threading.Condition()
        self._asked = 0
        self._done = 0
        self._closing: Iterable[int] | None = None
        self._thread: threading.Thread | None = None

    def begin(self) -> int:
        """Ask for a sync of all that was written until now; return its number, for :meth:`wait`.

        A sync that is under way does not count; all that are asked for meanwhile are done by the next.
        Raises RuntimeError if no thread can be started.
        """
        with self._condition:
            self._start()
            self._asked += 1
            self._condition.notify_all()
            return self._asked

    def wait(self, number: int, cancelled: Callable[[], bool]) -> None:
        """Wait until the sync of that number is done, or ``cancelled`` returns True.

        Raises OSError: ECANCELED if it was cancelled, and what went wrong if this or any sync before it failed.
        """
        with self._condition:
            while self._done < number and not self.error:
                self._condition.wait(_CHECK_SECONDS)
                if self._done < number and cancelled():
                    raise OSError(errno.ECANCELED, "the sync was abandoned", self._name)
            if self.error:
                raise OSError(self.error, os.strerror(self.error), self._name)

    def sync(self, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Make durable what was written until now. Raises OSError as :meth:`wait` does."""
        self.wait(self.begin(), cancelled)

    def close(self, fds: Iterable[int], deadline: float) -> bool:
        """Close ``fds`` once what was asked for is done; return whether that was by ``deadline`` (time.monotonic).

        Closing can hang as a sync can, so that it is this thread that does it. Raises RuntimeError as :meth:`begin`.
        """
        with self._condition:
            self._start()
            self._closing = fds
            self._condition.notify_all()
        assert self._thread
        self._thread.join(max(0.0, deadline - time.monotonic()))
        return not self._thread.is_alive()

    def _start(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="sync", daemon=True)
            thread.start()
            self._thread = thread

    def _run(self) -> None:
        while True:
            with self._condition:
                while self._asked == self._done and self._closing is None:
                    self._condition.wait()
                number = self._asked
                if number == self._done:
                    break
            error = self._sync_file()
            with self._condition:
                if error and not self.error:
                    self.error = error
                    self.lost[0] = 1
                    log.error(
                        "%s: what was written could not be made durable: %s; every flush fails from now on",
                        self._name,
                        os.strerror(error),
                    )
                self._done = number
                self._condition.notify_all()
        for fd in self._closing or ():
            try:
                os.close(fd)
            except OSError as error:
                log.warning("%s: %s when it was closed", self._name, error.strerror)

    def _sync_file(self) -> int:
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            return error.errno or errno.EIO
        return 0
