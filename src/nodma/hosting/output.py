"""What a process says: on stdout and stderr that nobody may read, that may be full, or closed.

Whoever writes never waits: each of the two has a thread that does. What does not fit its buffer is counted and left
out. Started by systemd, lines on stderr carry the priority that the journal files them under (sd-daemon(3)).
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import select
import signal
import threading
import time
from collections import deque
from typing import Any, Final

from nodma.hosting.ratelimit import RateLimit

BUFFER_BYTES: Final = 256 << 10
"""Bytes that wait for a reader before more is left out."""
FLUSH_SECONDS: Final = 1.0
"""How long the end of a process waits for what it said to be written."""
FORMAT: Final = 1
"""The format of the JSON objects that device processes and slots print; another number is another format."""

_STDOUT: Final = 1
_STDERR: Final = 2
_PIECE: Final = 4096
_RETRY_SECONDS: Final = 0.1
_PRIORITIES: Final = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))  # syslog(3); debug is 7


class Outlet:
    """A descriptor that is written to by a thread of its own, which starts with the first line, or by :meth:`start`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._waiting: deque[bytes] = deque()
        self._held = 0
        self._left_out = 0
        self._changed = threading.Condition()
        self._started = False

    def write(self, text: str) -> None:
        """Have ``text`` written; it is left out if too much waits already."""
        data = text.encode(errors="backslashreplace")
        with self._changed:
            if self._held and self._held + len(data) > BUFFER_BYTES:
                self._left_out += 1
                return
            self._put(data)
            self.start()
            self._changed.notify_all()

    def start(self) -> None:
        """Start the thread. Before memory is short: then it may not be possible."""
        with self._changed:
            if not self._started:
                self._started = True
                try:
                    threading.Thread(target=self._run, name=f"output {self._fd}", daemon=True).start()
                except RuntimeError:  # no thread left: nothing can be said without a risk to wait
                    self._started = False
                    self._forget()

    def flush(self, seconds: float = FLUSH_SECONDS) -> bool:
        """Wait until all is written, for ``seconds`` at most; return whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._held, seconds)

    def _put(self, data: bytes) -> None:
        self._waiting.append(data)
        self._held += len(data)

    def _forget(self) -> None:
        self._waiting.clear()
        self._held = 0

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are for the main thread
        while True:
            try:
                self._write_next()
            except Exception:  # out of memory
                time.sleep(_RETRY_SECONDS)
                with contextlib.suppress(Exception), self._changed:
                    self._forget()
                    self._changed.notify_all()

    def _write_next(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting)
            data = self._waiting.popleft()
        _write_all(self._fd, data)
        with self._changed:
            self._held -= len(data)
            if self._left_out and not self._held:
                self._put(f"nodma: WARNING: {self._left_out} messages were dropped: nobody read them\n".encode())
                self._left_out = 0
            self._changed.notify_all()


_outlets: Final = {fd: Outlet(fd) for fd in (_STDOUT, _STDERR)}


def say(line: str) -> None:
    """Print a line on stdout."""
    _outlets[_STDOUT].write(line + "\n")


def say_json(record: dict[str, Any]) -> None:
    """Print an object on stdout, as a line of JSON that carries its format."""
    say(json.dumps({"format": FORMAT} | record))


def say_error(text: str) -> None:
    """Print ``nodma: error: text`` on stderr."""
    prefix = _priority(logging.ERROR) if _to_journal() else ""
    _outlets[_STDERR].write(f"{prefix}nodma: error: {text}\n")


def say_on_stderr(text: str) -> None:
    """Print text of several lines on stderr."""
    _outlets[_STDERR].write(text)


def flush() -> None:
    """Wait for what was said to be written, :data:`FLUSH_SECONDS` at most."""
    end = time.monotonic() + FLUSH_SECONDS
    for outlet in _outlets.values():
        outlet.flush(max(0.0, end - time.monotonic()))


def start_log(verbose: int) -> None:
    """Log to stderr: warnings, with 1 what happens, with 2 every refused message; never more than a reader can read."""
    logging.raiseExceptions = False
    _outlets[_STDERR].start()
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    handler = _LogHandler()
    handler.addFilter(RateLimit())
    handler.setFormatter(_JournalFormatter() if _to_journal() else logging.Formatter(_LOG_FORMAT))
    logging.basicConfig(level=level, handlers=[handler])


def secure_standard_descriptors() -> None:
    """Open /dev/null in the place of each of stdin, stdout and stderr that is closed.

    Else the next file that is opened, a disk image perhaps, would take its number, and what is said.
    """
    for fd in (0, _STDOUT, _STDERR):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free: this one


_LOG_FORMAT: Final = "nodma: %(levelname)s: %(message)s"


class _LogHandler(logging.Handler):
    """Hands records to the outlet of stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(Exception):  # whoever logs is to go on
            _outlets[_STDERR].write(self.format(record) + "\n")


class _JournalFormatter(logging.Formatter):
    """Puts the priority in front of each line, as the journal takes it."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = _priority(record.levelno)
        return "\n".join(prefix + line for line in super().format(record).splitlines())


def _priority(level: int) -> str:
    return next((f"<{number}>" for least, number in _PRIORITIES if level >= least), "<7>")


def _to_journal() -> bool:
    """Return whether stderr is the journal's stream, as systemd says (systemd.exec(5), JOURNAL_STREAM)."""
    try:
        status = os.fstat(_STDERR)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _write_all(fd: int, data: bytes) -> None:
    """Write all of ``data``, however long that takes; give it up if it cannot be written."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view[:_PIECE]) :]
        except BlockingIOError:  # whoever shares it made it so
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()
        except OSError:  # closed, or the disk is full
            return


atexit.register(flush)
