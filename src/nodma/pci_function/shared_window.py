"""One window for several functions: who keeps it, and how each function comes to its own mapping of it.

The :class:`PoolKeeper` has the memory. A function in the same process asks it directly, one in a process of its own
through a socket (:class:`RemoteKeeper`), by which it is handed the one descriptor and nothing else.

The window is the owner's client's: it leaves with it, and the next one has a fresh window of zeros, as with a window
that is not shared. The others keep the memory that they have for as long as their queues are in it; so neither does an
owner's end take their pool away, nor do they ever work in one window on what was meant for another.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from dataclasses import dataclass
from typing import Final, Protocol

from nodma.errors import Disconnected, UsageError
from nodma.spec.slot_protocol import (
    NO_GENERATION,
    VERSION,
    KeeperCommand,
    KeeperReply,
    KeeperRequest,
    KeeperStatus,
)
from nodma.window import Window

ANSWER_SECONDS: Final = 1.0
"""How long a keeper may take to answer, before whoever asked gives that request up."""


class Keeper(Protocol):
    """Who has the memory. Its windows are counted: each has a generation."""

    def lend(self, generation: int) -> tuple[int, int | None]:
        """Return the generation there is now, and a descriptor of it, the caller's, if it is another than that."""

    def renew(self) -> None:
        """Make a fresh window; those who have the old one keep it until they close it."""


class PoolKeeper:
    """Keeps a window of ``size`` bytes. May be asked from several threads."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.generation = NO_GENERATION + 1
        self._window = Window.create(size)
        self._lock = threading.Lock()

    def lend(self, generation: int) -> tuple[int, int | None]:
        """Return the generation, and a descriptor if it is a new one."""
        with self._lock:
            fd = None if generation == self.generation else os.dup(self._window.fd)
            return self.generation, fd

    def renew(self) -> None:
        """Make a fresh window of zeros."""
        with self._lock:
            fresh = Window.create(self.size)
            self._window.close()
            self._window = fresh
            self.generation += 1

    def close(self) -> None:
        """Release the memory."""
        self._window.close()

    def answer(self, channel: socket.socket, *, owner: bool) -> bool:
        """Answer one request that came over the socket of a :class:`RemoteKeeper`; return False at its end.

        Only the ``owner`` may have the window renewed. Raises OSError if the answer cannot be sent at once over a
        socket that does not block.
        """
        packet = channel.recv(KeeperRequest.size + 1)
        if not packet:
            return False
        fd = None
        reply = KeeperReply.new()
        if len(packet) != KeeperRequest.size:
            reply.status = KeeperStatus.BAD_COMMAND
        else:
            request = KeeperRequest(packet)
            reply.id = request.id
            try:
                reply.status = self._carry_out(request, owner)
                if reply.status == KeeperStatus.OK:
                    reply.generation, fd = self.lend(request.generation)
            except (OSError, MemoryError):
                reply.status = KeeperStatus.FAILED
        try:
            socket.send_fds(channel, [bytes(reply)], [] if fd is None else [fd])
        finally:
            if fd is not None:
                os.close(fd)
        return True

    def _carry_out(self, request: KeeperRequest, owner: bool) -> KeeperStatus:
        if request.version != VERSION:
            return KeeperStatus.BAD_VERSION
        if request.command == KeeperCommand.LEND:
            return KeeperStatus.OK
        if request.command != KeeperCommand.RENEW:
            return KeeperStatus.BAD_COMMAND
        if not owner:
            return KeeperStatus.NOT_OWNER
        self.renew()
        return KeeperStatus.OK


class RemoteKeeper:
    """A keeper in another process, at the other end of a SOCK_SEQPACKET socket, which this owns.

    A keeper that is held up answers late or not at all: it is asked again, and answers to earlier requests are ignored.
    """

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._id = 0
        channel.settimeout(ANSWER_SECONDS)

    def lend(self, generation: int) -> tuple[int, int | None]:
        """Ask for the window. Raises Disconnected if nobody answers within :data:`ANSWER_SECONDS`."""
        return self._ask(KeeperCommand.LEND, generation)

    def renew(self) -> None:
        """Have a fresh window made. Raises Disconnected if nobody answers within :data:`ANSWER_SECONDS`."""
        _, fd = self._ask(KeeperCommand.RENEW, NO_GENERATION)
        if fd is not None:
            os.close(fd)

    def _ask(self, command: int, generation: int) -> tuple[int, int | None]:
        self._id = (self._id + 1) & 0xFFFFFFFF
        try:
            self._channel.sendall(bytes(KeeperRequest.new(command=command, id=self._id, generation=generation)))
            return self._answer(time.monotonic() + ANSWER_SECONDS)
        except OSError as error:
            reason = f"within {ANSWER_SECONDS:g} s" if isinstance(error, TimeoutError) else f"({error.strerror})"
            raise Disconnected(f"the keeper of the shared pool did not answer {reason}") from error

    def _answer(self, deadline: float) -> tuple[int, int | None]:
        while True:
            packet, fds, _, _ = socket.recv_fds(self._channel, KeeperReply.size, 1)
            if not packet:
                raise Disconnected("the keeper of the shared pool is gone")
            reply = KeeperReply(packet) if len(packet) == KeeperReply.size else None
            if reply and reply.id == self._id and reply.status == KeeperStatus.OK:
                return reply.generation, fds[0] if fds else None
            for fd in fds:
                os.close(fd)
            if reply is None or (reply.id == self._id and reply.status != KeeperStatus.OK):
                raise Disconnected(f"the keeper of the shared pool refused: {_show_status(reply)}")
            if time.monotonic() > deadline:
                raise TimeoutError


def _show_status(reply: KeeperReply | None) -> str:
    if reply is None:
        return "its reply has the wrong size"
    if reply.status == KeeperStatus.BAD_VERSION:
        return f"it speaks version {reply.version} of the slot protocol, this process version {VERSION}"
    names = {status.value: status.name for status in KeeperStatus}
    return names.get(reply.status, f"status {reply.status}")


class OwnWindow:
    """A window of a function's own: no other function has it."""

    def __init__(self, size: int) -> None:
        self.window = Window.create(size)

    def refresh(self) -> bool:
        """Return False: nobody else replaces it."""
        return False

    def renew(self) -> None:
        """Take a fresh one."""
        size = self.window.size
        self.window.close()
        self.window = Window.create(size)

    def close(self) -> None:
        """Release it."""
        self.window.close()


class SharedWindow:
    """A function's mapping of a window that others have, too. Raises Disconnected if the keeper is gone."""

    def __init__(self, keeper: Keeper, size: int, *, owner: bool) -> None:
        self._keeper = keeper
        self._size = size
        self._owner = owner
        self._generation, fd = keeper.lend(NO_GENERATION)
        if fd is None:
            raise UsageError("the keeper of the shared pool sent no window")
        self.window = Window.adopt(fd, size)

    @property
    def stale(self) -> bool:
        """Whether the keeper now has a different window from the one that is mapped."""
        generation, fd = self._keeper.lend(self._generation)
        if fd is not None:
            os.close(fd)
        return generation != self._generation

    def refresh(self) -> bool:
        """Map the window that there is now; return whether it is another."""
        generation, fd = self._keeper.lend(self._generation)
        if fd is None:
            return False
        self.window.close()
        self.window = Window.adopt(fd, self._size)
        self._generation = generation
        return True

    def renew(self) -> None:
        """The client is gone: with the owner's, the window goes; else it is the owner's client's, and stays.

        Raises Disconnected if the owner gets no fresh window: call again before another client is served.
        """
        if self._owner:
            self._keeper.renew()
            self.refresh()
        else:
            with contextlib.suppress(Disconnected):  # asked again before the next queue is enabled
                self.refresh()

    def close(self) -> None:
        """Release the mapping."""
        self.window.close()


@dataclass(frozen=True, slots=True)
class SharedPoolConfig:
    """That a function's window is shared. ``owner`` is the function whose BAR it is; None: the function itself."""

    keeper: Keeper
    owner: int | None = None
