"""What systemd and a service tell each other: sockets that are handed over, and how the service is.

The protocols are those of sd_listen_fds(3) and sd_notify(3): environment variables and a datagram, a few lines each, so
that no library is needed.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Final

_FIRST_FD: Final = 3  # SD_LISTEN_FDS_START
_MOST_FDS: Final = 64


def take_listening_fds() -> list[int]:
    """Return the descriptors that systemd handed to this process. They are not handed on to its children."""
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isascii() or not count.isdigit():
        return []
    fds = list(range(_FIRST_FD, _FIRST_FD + min(int(count), _MOST_FDS)))
    for fd in fds:
        with contextlib.suppress(OSError):
            os.set_inheritable(fd, False)
    return fds


class Notifier:
    """Tells systemd how this service is, if it asked for that; children of the process cannot."""

    def __init__(self) -> None:
        path = os.environ.pop("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path

    def ready(self, status: str) -> None:
        """Say that the service is ready."""
        self._send(f"READY=1\nSTATUS={_one_line(status)}")

    def status(self, status: str) -> None:
        """Say what the service does, for ``systemctl status``."""
        self._send(f"STATUS={_one_line(status)}")

    def stopping(self) -> None:
        """Say that the service is about to end."""
        self._send("STOPPING=1\nSTATUS=finishing requests, syncing")

    def _send(self, message: str) -> None:
        if self._address:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.sendto(message.encode(errors="replace"), self._address)


def _one_line(text: str) -> str:
    return " ".join(text.split())
