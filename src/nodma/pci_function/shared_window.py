"""One window for several functions: who keeps it, and how each function comes to its own mapping of it.

The :class:`PoolKeeper` has the memory. A function in the same process asks it directly, one in a process of its own
through a socket (:class:`RemoteKeeper`), by which it is handed the one descriptor and nothing else.

The window is the owner's client's: it leaves with it, and the next one has a fresh window of zeros, as with a window
that is not shared. The others keep the memory that they have for as long as their queues are in it; so neither does an
owner's end take their pool away, nor do they ever work in one window on what was meant for another.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from dataclasses import dataclass
from typing import Final, Protocol

from nodma.errors import Disconnected, UsageError
from nodma.window import Window

_REQUEST: Final = struct.Struct("<BQ")  # what is asked for, and the generation that is mapped
_REPLY: Final = struct.Struct("<Q")
_LEND, _RENEW = 1, 2
_SECONDS: Final = 5.0
"""How long a keeper may take to answer."""
NEVER: Final = 0
"""No generation of any window."""


class Keeper(Protocol):
    """Who has the memory. Its windows are counted: each has a generation."""

    def lend(self, generation: int) -> tuple[int, int | None]:
        """Give the generation there is now, and a descriptor of it, the caller's, if it is another than that."""

    def renew(self) -> None:
        """Make a fresh window; those who have the old one keep it until they let it go."""


class PoolKeeper:
    """Keeps a window of ``size`` bytes. May be asked from several threads."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.generation = NEVER + 1
        self._window = Window.create(size)
        self._lock = threading.Lock()

    def lend(self, generation: int) -> tuple[int, int | None]:
        """Give the generation, and a descriptor if it is news."""
        with self._lock:
            fd = None if generation == self.generation else os.dup(self._window.fd)
            return self.generation, fd

    def renew(self) -> None:
        """Make a fresh window of zeros."""
        with self._lock:
            self._window.close()
            self._window = Window.create(self.size)
            self.generation += 1

    def close(self) -> None:
        """Let the memory go."""
        self._window.close()

    def answer(self, channel: socket.socket, *, owner: bool) -> bool:
        """Answer one question that came over the socket of a :class:`RemoteKeeper`; False at its end.

        Only the ``owner`` may have the window renewed. Raises OSError if the answer cannot be sent at once, over a
        socket that does not block.
        """
        question = channel.recv(_REQUEST.size)
        if len(question) < _REQUEST.size:
            return False
        kind, generation = _REQUEST.unpack(question)
        if kind == _RENEW and owner:
            self.renew()
        now, fd = self.lend(generation)
        try:
            socket.send_fds(channel, [_REPLY.pack(now)], [] if fd is None else [fd])
        finally:
            if fd is not None:
                os.close(fd)
        return True


class RemoteKeeper:
    """A keeper in another process, at the other end of a SOCK_SEQPACKET socket, which this owns."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        channel.settimeout(_SECONDS)

    def lend(self, generation: int) -> tuple[int, int | None]:
        """Ask for the window. Raises Disconnected if nobody answers."""
        return self._ask(_LEND, generation)

    def renew(self) -> None:
        """Have a fresh window made. Raises Disconnected if nobody answers."""
        _, fd = self._ask(_RENEW, NEVER)
        if fd is not None:
            os.close(fd)

    def _ask(self, kind: int, generation: int) -> tuple[int, int | None]:
        try:
            self._channel.sendall(_REQUEST.pack(kind, generation))
            answer, fds, _, _ = socket.recv_fds(self._channel, _REPLY.size, 1)
        except OSError as error:
            self._channel.close()  # a late answer must not be taken for that to another question
            raise Disconnected(f"the keeper of the shared pool does not answer: {error}") from error
        if len(answer) < _REPLY.size:
            raise Disconnected("the keeper of the shared pool is gone")
        return _REPLY.unpack(answer)[0], fds[0] if fds else None


class OwnWindow:
    """A window of a function's own: no other function has it."""

    def __init__(self, size: int) -> None:
        self.window = Window.create(size)

    def refresh(self) -> bool:
        """Nobody else replaces it."""
        return False

    def renew(self) -> None:
        """Take a fresh one."""
        size = self.window.size
        self.window.close()
        self.window = Window.create(size)

    def close(self) -> None:
        """Let it go."""
        self.window.close()


class SharedWindow:
    """A function's mapping of a window that others have, too. Raises Disconnected if the keeper is gone."""

    def __init__(self, keeper: Keeper, size: int, *, owner: bool) -> None:
        self._keeper = keeper
        self._size = size
        self._owner = owner
        self._generation, fd = keeper.lend(NEVER)
        if fd is None:
            raise UsageError("the keeper of the shared pool hands out no window")
        self.window = Window.adopt(fd, size)

    @property
    def stale(self) -> bool:
        """Whether there is another window by now than the one that is mapped."""
        generation, fd = self._keeper.lend(self._generation)
        if fd is not None:
            os.close(fd)
        return generation != self._generation

    def refresh(self) -> bool:
        """Map the window that there is now; tell whether it is another."""
        generation, fd = self._keeper.lend(self._generation)
        if fd is None:
            return False
        self.window.close()
        self.window = Window.adopt(fd, self._size)
        self._generation = generation
        return True

    def renew(self) -> None:
        """The client is gone: with the owner's, the window goes; else it is the owner's client's, and stays."""
        if self._owner:
            self._keeper.renew()
        self.refresh()

    def close(self) -> None:
        """Let the mapping go."""
        self.window.close()


@dataclass(frozen=True, slots=True)
class SharedPoolConfig:
    """That a function's window is shared. ``owner`` is the function whose BAR it is; None: the function itself."""

    keeper: Keeper
    owner: int | None = None
