"""A device process from outside: ``nodma serve`` as a child."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any, Final, Self

from nodma.errors import NodmaError
from nodma.hosting.attach import end_with_parent

_READY_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 45.0  # longer than a process, and a supervisor of processes, takes to end by itself
_KEPT_BYTES: Final = 64 << 10
_SHOWN_CHARACTERS: Final = 2000


class _Drain:
    """Reads a pipe of a child to its end, so that the child never waits for a reader; keeps the last 64 KiB."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._kept = b""
        self._first: bytes | None = None
        self._ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, name="drain", daemon=True)
        self._thread.start()

    def first_line(self, seconds: float) -> bytes:
        """Wait for the first line, and return it; b"" if there is none at the end, or after so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._first is not None or self._ended, seconds)
            return self._first or b""

    def text(self, seconds: float = 1.0) -> str:
        """Return the last of what came, at the end; a grandchild may keep that from being reached, for ``seconds``."""
        self._thread.join(seconds)
        with self._changed:
            return self._kept.decode(errors="replace")

    def _read(self) -> None:
        with self._stream:
            while data := os.read(self._stream.fileno(), _KEPT_BYTES):
                with self._changed:
                    self._kept += data
                    if self._first is None and b"\n" in self._kept:
                        self._first = self._kept.partition(b"\n")[0]
                    self._kept = self._kept[-_KEPT_BYTES:]
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


class Served:
    """A process of ``nodma serve`` that is ready when this is made, and is ended by :meth:`stop`.

    ``ready`` is its ready line, ``startup`` the seconds until it came. What it says is read all the time.
    """

    def __init__(self, *arguments: str) -> None:
        """Start it. Raises NodmaError, with what it said, if it does not become ready."""
        begin = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "nodma", "serve", *arguments, "--json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=end_with_parent,
        )
        self.pid = self._process.pid
        assert self._process.stdout
        assert self._process.stderr
        self._out, self._err = _Drain(self._process.stdout), _Drain(self._process.stderr)
        line = self._out.first_line(_READY_SECONDS)
        self.startup = time.monotonic() - begin
        try:
            self.ready: dict[str, Any] = json.loads(line)
        except ValueError:
            self.kill()
            raise NodmaError(f"the device process did not start: {self.said}") from None

    @property
    def said(self) -> str:
        """The last of what it said on stderr, at most 2,000 characters."""
        return self._err.text()[-_SHOWN_CHARACTERS:].strip()

    def stop(self) -> dict[str, Any]:
        """End it by SIGTERM; return its last report. Raises NodmaError if it did not end well."""
        self._process.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise NodmaError(f"the device process did not end within {_STOP_SECONDS:g} s: {self.said}") from None
        if status:
            raise NodmaError(f"the device process ended with {status}: {self.said}")
        report: dict[str, Any] = json.loads(self._out.text().splitlines()[-1])
        return report

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """End it by SIGKILL, in the middle of whatever it does."""
        self._process.kill()
        self._process.wait()


class DeviceProcess(Served):
    """The process of a disk, ``nodma serve blk``, which processes of this user may look into."""

    def __init__(self, image: Path, socket: Path, *options: str) -> None:
        """Start it. Raises NodmaError, with what it said, if it does not become ready."""
        super().__init__("blk", "-s", str(socket), "--image", str(image), "--auditable", *options)
