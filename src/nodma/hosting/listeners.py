"""Where functions listen: at a path, on a descriptor that was inherited, or on a socket that systemd handed over."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click

from nodma.errors import Unavailable, UsageError
from nodma.hosting.options import find_group
from nodma.hosting.systemd import take_listening_fds
from nodma.vfio_user.listener import Listener, adopt_listener, make_listener

_OWNER_MODE: Final = 0o600
_GROUP_MODE: Final = 0o660


class Listeners:
    """The sockets of this process's functions; ``mode`` and ``group`` are those of sockets that it makes."""

    def __init__(self, mode: int | None = None, group: str | None = None) -> None:
        """Raises Unavailable if there is no such group."""
        self._group = -1 if group is None else find_group(group)
        self._mode = (_OWNER_MODE if group is None else _GROUP_MODE) if mode is None else mode
        self._handed = {fd: _address(fd) for fd in take_listening_fds()}

    def choose(self, path: Path | None, fd: int | None) -> Callable[[], Listener]:
        """Return what makes the listener of a process's one function. Raises click.UsageError if nothing says where."""
        if path is not None and fd is not None:
            raise click.UsageError("give --socket-path PATH or --fd N, not both: where to listen.")
        if fd is not None:
            return lambda: adopt_listener(fd)
        if path is not None:
            return lambda: self.at(path)
        if len(self._handed) == 1:
            return lambda: adopt_listener(next(iter(self._handed)))
        if self._handed:
            raise UsageError(f"systemd handed over {len(self._handed)} sockets: name one by --socket-path PATH")
        raise click.UsageError("give --socket-path PATH or --fd N: where to listen.")

    def at(self, path: Path) -> Listener:
        """Return the listener at ``path``: one that systemd handed over, or a new one."""
        fd = self.handed_over(path)
        return make_listener(path, mode=self._mode, group=self._group) if fd is None else adopt_listener(fd)

    def handed_over(self, path: Path) -> int | None:
        """Return the descriptor of the socket that systemd made at ``path``; None if it made none."""
        return next((fd for fd, address in self._handed.items() if address == path.absolute()), None)

    @property
    def words(self) -> list[str]:
        """The options of another process that is to make a socket in the same way."""
        group = [] if self._group < 0 else [f"--socket-group={self._group}"]
        return [f"--socket-mode={self._mode:o}", *group]


def _address(fd: int) -> Path:
    """Return where the socket ``fd`` listens. Raises Unavailable if it is not a UNIX socket with a path."""
    try:
        with socket.socket(fileno=os.dup(fd)) as sock:
            name = sock.getsockname() if sock.family == socket.AF_UNIX else ""
    except OSError as error:
        raise Unavailable(f"descriptor {fd}, which systemd handed over, is not a socket: {error.strerror}") from error
    if not isinstance(name, str) or not name:
        raise Unavailable(f"descriptor {fd}, which systemd handed over, is not a UNIX socket with a path")
    return Path(name).absolute()
