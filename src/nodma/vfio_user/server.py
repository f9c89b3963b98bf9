"""Serve a device to VMMs over a UNIX socket: one client at a time, one thread, nothing that blocks.

The order in which QEMU 11.1 speaks, and what it is answered, is in docs/vfio-user.md.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import time
from typing import Final

from nodma.errors import Disconnected, ProtocolError
from nodma.vfio_user.commands import Commands
from nodma.vfio_user.connection import RECEIVE_TIMEOUT, Connection
from nodma.vfio_user.endpoint import Endpoint
from nodma.vfio_user.guard import DmaGuard

log = logging.getLogger(__name__)

HANDSHAKE_SECONDS: Final = 5.0
"""How long a client may hold the socket without proposing a version."""
_DRAIN_SECONDS: Final = 2.0


class Server:
    """Serve ``endpoint`` to whoever connects to ``listener``, until :meth:`stop`."""

    def __init__(self, endpoint: Endpoint, listener: socket.socket) -> None:
        self.endpoint = endpoint
        self.guard = DmaGuard()
        self.clients = 0
        """Clients that were accepted since the process began."""
        self._messages = 0  # of clients that are gone
        self._listener = listener
        listener.setblocking(False)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stopping = False
        self._poll = select.poll()
        self._poll.register(listener, select.POLLIN)
        self._poll.register(self._wake, select.POLLIN)
        if endpoint.wakeup_fd >= 0:
            self._poll.register(endpoint.wakeup_fd, select.POLLIN)
        self._connection: Connection | None = None
        self._commands = Commands(endpoint, self.guard)
        self._deadline = 0.0

    @property
    def connected(self) -> bool:
        """Whether a client is there."""
        return self._connection is not None

    @property
    def messages(self) -> int:
        """Messages taken since the process began."""
        return self._messages + (self._connection.messages_seen if self._connection else 0)

    def stop(self) -> None:
        """Have :meth:`run` return soon. May be called from a signal handler or another thread."""
        self._stopping = True
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    def run(self) -> None:
        """Serve until :meth:`stop`; then finish the requests that are there, and let the client go."""
        busy = False
        while not self._stopping:
            busy = self.step(0 if busy else None)
        self.endpoint.finish(_DRAIN_SECONDS)
        self._drop("the server stops")

    def close(self) -> None:
        """Close the sockets; the endpoint stays its owner's."""
        self._drop("the server closes")
        self._listener.close()
        if self._wake >= 0:
            os.close(self._wake)
            self._wake = -1

    def step(self, timeout: float | None = None) -> bool:
        """Wait up to ``timeout`` seconds for something to do, and do it; tell whether there is more.

        If it may wait for ever, it stays with a client that speaks, for a few milliseconds at a time.
        """
        stay = timeout is None
        if self._connection and not self._commands.negotiated:
            left = max(0.0, self._deadline - time.monotonic())
            timeout = left if timeout is None else min(timeout, left)
        events = dict(self._poll.poll(None if timeout is None else timeout * 1000))
        if self.endpoint.wakeup_fd in events:
            os.eventfd_read(self.endpoint.wakeup_fd)
        connection = self._connection
        if connection and connection.sock.fileno() in events:
            self._serve_client(connection, stay)
        if self._listener.fileno() in events:
            self._accept()
        if self._connection and not self._commands.negotiated and time.monotonic() >= self._deadline:
            self._drop(f"the client proposed no version within {HANDSHAKE_SECONDS:g} s")
        return self.endpoint.service()

    def _accept(self) -> None:
        """Take a client; turn it away while another is there."""
        try:
            sock, _ = self._listener.accept()
        except OSError:  # gone again, or no descriptor left: nothing is lost but this attempt
            return
        if self._connection and _hung_up(self._connection.sock):
            self._drop("the client is gone")
        if self._connection:
            log.warning("another client was turned away: this device is in use")
            sock.close()
            return
        self._connection = Connection(sock)
        self._commands = Commands(self.endpoint, self.guard)
        self._deadline = time.monotonic() + HANDSHAKE_SECONDS
        self.clients += 1
        self._poll.register(sock, select.POLLIN)
        log.info("client %d connected", self.clients)

    def _drop(self, why: str) -> None:
        """Let the client go, with all that was its."""
        if self._connection:
            log.info("%s", why)
            self._poll.unregister(self._connection.sock)
            self._messages += self._connection.messages_seen
            self._connection.close()
            self._connection = None
            self.guard.forget()
            self.endpoint.detach()

    def _serve_client(self, connection: Connection, stay: bool) -> None:
        try:
            if connection.blocked:
                connection.flush()
                self._take_messages(connection)
            if not connection.blocked:
                connection.receive()
                self._take_messages(connection)
            if stay:
                self._stay_with(connection)
            if not connection.blocked and self._commands.rejected:
                raise Disconnected("the client cannot be served")
            self._poll.modify(connection.sock, select.POLLOUT if connection.blocked else select.POLLIN)
        except (Disconnected, ProtocolError) as error:
            self._drop(str(error))

    def _stay_with(self, connection: Connection) -> None:
        """Take what a client goes on to say, without asking each time who else there is.

        Whoever else there is - another client, :meth:`stop` - is seen after RECEIVE_TIMEOUT, or twice that
        if the client falls silent just then.
        """
        until = time.monotonic() + RECEIVE_TIMEOUT
        taken = -1
        while (
            taken != connection.messages_seen
            and self._commands.negotiated
            and not (self._stopping or self.endpoint.main_thread_must_interrupt)
        ):
            taken = connection.messages_seen
            connection.serve_accesses(self.endpoint, self._commands.access_limit, until)
            self._take_messages(connection)

    def _take_messages(self, connection: Connection) -> None:
        connection.answer_accesses(self.endpoint, self._commands.access_limit)
        for message in connection.messages():
            fds = message[4]
            try:
                reply = self._commands.answer(message)
            finally:
                for fd in fds:  # whatever no command took
                    with contextlib.suppress(OSError):  # its file system's word; it is closed all the same
                        os.close(fd)
            if reply is not None:
                connection.send(*reply)
            if self._commands.rejected:
                return
            connection.answer_accesses(self.endpoint, self._commands.access_limit)


def _hung_up(sock: socket.socket) -> bool:
    """Tell whether the peer closed its end."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))
