"""The socket that a server listens on: made at a path, or handed over as a descriptor."""

from __future__ import annotations

import errno
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodma.errors import Unavailable, UsageError

_BACKLOG: Final = 8
_PATH_MAX: Final = 107
"""Bytes that a UNIX socket's address has room for."""


@dataclass(slots=True)
class Listener:
    """A listening socket; ``made`` identifies the file at ``path``, if we made it."""

    socket: socket.socket
    path: str
    made: tuple[int, int, int] | None = None

    def remove(self) -> None:
        """Remove the file at ``path`` if it is still the one that we made."""
        if self.made:
            try:
                if _identity(self.path) == self.made:
                    Path(self.path).unlink()
            except FileNotFoundError:
                pass
            self.made = None


def make_listener(path: Path, *, mode: int = 0o600, group: int = -1) -> Listener:
    """Listen at ``path``, with the permissions ``mode``, and for the group of that number (-1: this process's).

    A socket file that nobody listens on any more, left by a process that was killed, is replaced. Raises
    UsageError if another process listens there, or something else is in the way.
    """
    if len(os.fsencode(path)) > _PATH_MAX:
        raise UsageError(f"the socket path {path} is longer than {_PATH_MAX} bytes: use a shorter one")
    _clear(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o777 & ~mode)
    try:
        sock.bind(str(path))
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise Unavailable(f"the socket {path} is in use") from error
        raise Unavailable(f"cannot listen at {path}: {error.strerror}") from error
    finally:
        os.umask(before)
    listener = Listener(sock, str(path), _identity(str(path)))
    try:
        if group >= 0:  # before it listens: nobody of another group got in
            os.chown(path, -1, group, follow_symlinks=False)
        sock.listen(_BACKLOG)
    except OSError as error:
        listener.remove()
        sock.close()
        raise Unavailable(f"cannot give the socket {path} to group {group}: {error.strerror}") from error
    return listener


def adopt_listener(fd: int) -> Listener:
    """Take a listening UNIX socket over. Raises UsageError if ``fd`` is not one."""
    try:
        sock = socket.socket(fileno=fd)
        listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise UsageError(f"descriptor {fd} is not a socket: {error.strerror}") from error
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM or not listening:
        sock.detach()
        raise UsageError(f"descriptor {fd} is not a listening UNIX stream socket")
    sock.set_inheritable(False)
    name = sock.getsockname()
    return Listener(sock, name if isinstance(name, str) else os.fsdecode(name))


def _clear(path: Path) -> None:
    """Remove a dead socket from ``path``."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise Unavailable(f"{path} exists and is not a socket: it is left alone; name another path")
    except FileNotFoundError:
        return
    except OSError as error:
        raise Unavailable(f"cannot listen at {path}: {error.strerror}") from error
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except FileNotFoundError:
            return
        except OSError:  # it listens, and its backlog is full; or it is not ours to touch
            pass
    raise Unavailable(f"the socket {path} is in use: another process listens there")


def _identity(path: str) -> tuple[int, int, int]:
    """Return what distinguishes a file from a later one with its path and inode number; a chmod does not change it."""
    status = os.lstat(path)
    return status.st_dev, status.st_ino, status.st_mtime_ns
