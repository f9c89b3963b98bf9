"""A guest's serial port: all that it says is kept, and can be waited for."""

from __future__ import annotations

import re
import socket
import threading
import time
from pathlib import Path

from nodma.errors import GuestError
from nodma.guest.command import last_lines


class Console:
    """One end of a serial port, read by a thread of its own so that the guest never waits for us.

    ``log`` gets all of it as it comes; errors name it. ``slowness`` is how much longer the guest may take for
    everything than those who wait for it say.
    """

    def __init__(self, sock: socket.socket, log: Path, slowness: float = 1.0) -> None:
        self._socket = sock
        self._file = log.open("wb")
        self.log = log
        self._slowness = slowness
        self._said = bytearray()
        self._seen = 0
        self._ended = False
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, name="console", daemon=True)
        self._reader.start()

    @property
    def raw(self) -> bytes:
        """Everything that was said so far."""
        with self._news:
            return bytes(self._said)

    @property
    def text(self) -> str:
        """The same as text."""
        return self.raw.decode(errors="replace").replace("\r\n", "\n")

    def expect(self, pattern: str, seconds: float) -> re.Match[str]:
        """Wait for a pattern after what was last waited for; return the match.

        Only lines that have ended are looked at, so a pattern never matches half of what is being said.

        Raises GuestError, with the last lines, if the guest ends first or takes longer.
        """
        wanted = re.compile(pattern.encode(), re.MULTILINE)
        seconds *= self._slowness
        deadline = time.monotonic() + seconds
        with self._news:
            while not (match := wanted.search(self._said, self._seen, self._said.rfind(b"\n") + 1)):
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    why = "the guest ended" if self._ended else f"{seconds:.0f} s passed"
                    raise GuestError(f"{why} before {pattern!r} was seen; {self.tail()}")
                self._news.wait(left)
            self._seen = match.end()
            found = re.search(pattern, match[0].decode(errors="replace"), re.MULTILINE)
        assert found
        return found

    def send(self, line: str) -> None:
        """Type a line."""
        self._socket.sendall(line.encode() + b"\n")

    def tail(self) -> str:
        """Return where the log is, and its last lines."""
        text = bytes(self._said[-16384:]).decode(errors="replace").replace("\r", "")
        return f"the log is {self.log}, and ends:\n{last_lines(text)}"

    def close(self) -> None:
        """Take what is still to come, and stop. The other end must be closed."""
        self._reader.join(timeout=10)
        self._socket.close()
        self._file.close()

    def _read(self) -> None:
        while True:
            try:
                data = self._socket.recv(1 << 16)
            except OSError:
                data = b""
            with self._news:
                self._said += data
                self._ended = not data
                self._news.notify_all()
            if not data:
                return
            self._file.write(data)
            self._file.flush()
