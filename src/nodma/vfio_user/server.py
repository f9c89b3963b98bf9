"""Serve a device to VMMs over a UNIX socket: one client at a time, on a loop that others may share, without waiting.

The order in which QEMU 11.1 speaks, and what it is answered, is in docs/vfio-user.md. Whatever goes wrong while a
client is served ends that client, and neither the process nor the next client.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import time
from typing import Final

from nodma.errors import Disconnected, ProtocolError
from nodma.loop import Handle, Loop, Timer
from nodma.vfio_user.commands import Commands
from nodma.vfio_user.connection import Connection
from nodma.vfio_user.descriptors import MAX_BACKLOG, Descriptors
from nodma.vfio_user.endpoint import Endpoint
from nodma.vfio_user.guard import DmaGuard

log = logging.getLogger(__name__)

HANDSHAKE_SECONDS: Final = 5.0
"""How long a client may hold the socket without proposing a version."""
MESSAGE_SECONDS: Final = 5.0
"""How long a client may take to send the rest of a message; it is looked at once a second."""
TURN_SECONDS: Final = 0.004
"""How long a client is served before others have their turn; the message that is being carried out ends first."""
_TICK_SECONDS: Final = 1.0
_RETRY_SECONDS: Final = 0.5
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Server:
    """Serves ``endpoint`` to whoever connects to ``listener``, while ``loop`` runs."""

    def __init__(self, endpoint: Endpoint, listener: socket.socket, loop: Loop) -> None:
        self.endpoint = endpoint
        self.guard = DmaGuard()
        self.descriptors = Descriptors()
        endpoint.interrupts.close_fds = self.descriptors.close
        self.clients = 0
        """Clients that were accepted since the process began."""
        self._messages = 0  # of clients that are gone
        self._listener = listener
        listener.setblocking(False)
        self._loop = loop
        self._accepting = loop.add_reader(listener.fileno(), self._accept, patient=True)
        self._finished = False
        self._wakeup: Handle | None = None
        if endpoint.wakeup_fd >= 0:
            self._wakeup = loop.add_reader(endpoint.wakeup_fd, self._woken, patient=True)
        self._connection: Connection | None = None
        self._reader: Handle | None = None
        self._commands = Commands(endpoint, self.guard)
        self._detached = True
        self._again = False  # a turn of the client's is due
        self._service_again = False
        self._timer: Timer | None = None
        self._handshake: Timer | None = None
        self._stalled_since = 0.0
        self._stalled_at = -1

    @property
    def connected(self) -> bool:
        """Whether a client is there."""
        return self._connection is not None

    @property
    def messages(self) -> int:
        """Messages taken since the process began."""
        return self._messages + (self._connection.messages_seen if self._connection else 0)

    def finish(self, seconds: float) -> None:
        """Accept no more clients, finish the requests that have arrived within ``seconds``, and drop the client."""
        self._finished = True
        self._accepting.cancel()
        try:
            self.endpoint.finish(seconds)
        except Exception:  # the end is to be an orderly one all the same
            _log("the device failed while it finished its requests")
        self._drop("the server stops")

    def close(self) -> None:
        """Close the sockets; the endpoint stays its owner's."""
        self._finished = True
        self._drop("the server closes")
        self._accepting.cancel()
        if self._wakeup:
            self._wakeup.cancel()
        if self._timer:
            self._timer.cancel()
        self._listener.close()
        self.descriptors.end()

    # Clients come and go

    def _accept(self) -> None:
        """Take a client; turn it away while another is there."""
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            if error.errno in _EXHAUSTED:  # else the client is gone again
                log.warning("a client cannot be accepted: %s; trying again", error.strerror)
                self._stop_accepting(_RETRY_SECONDS)
            return
        if self._connection and _hung_up(self._connection.sock):
            self._drop("the client is gone")
        if self._connection or not self._detached or self.descriptors.backlog > MAX_BACKLOG:
            why = "this device is in use" if self._connection else "the device is not ready"
            log.warning("another client was turned away: %s", why)
            self.descriptors.close_socket(sock)
            return
        try:
            self._connection = connection = Connection(sock, self.descriptors)
            self._commands = Commands(self.endpoint, self.guard)
            self._reader = self._loop.add_reader(sock.fileno(), self._serve_client)
        except Exception:  # no memory, or no room in the epoll
            _log("a client could not be taken")
            if self._connection is None:
                self.descriptors.close_socket(sock)
            self._drop("the client cannot be served")
            return
        self._detached = False
        self.clients += 1
        self._handshake = self._loop.call_later(HANDSHAKE_SECONDS, lambda: self._check_handshake(connection))
        self._start_timer()
        log.info("client %d connected", self.clients)

    def _stop_accepting(self, seconds: float) -> None:
        self._accepting.pause()
        self._loop.call_later(seconds, self._accept_again)

    def _accept_again(self) -> None:
        if not self._finished and (self._connection or self._detached):
            self._accepting.resume()

    def _drop(self, why: str) -> None:
        """Let the client go, with all that was its."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        log.info("%s", why)
        if self._handshake:  # it has the connection, and with it a client's buffers
            self._handshake.cancel()
            self._handshake = None
        if self._reader:
            self._reader.cancel()
            self._reader = None
        self._messages += connection.messages_seen
        self.guard.forget()
        try:
            connection.close()
        except Exception:
            _log("the client's socket could not be closed")
        self._detach()

    def _detach(self) -> None:
        """Have the endpoint forget the client. Until it has, there is no next one: who connects has to wait."""
        if self._connection or self._detached:
            return
        try:
            self.endpoint.detach()
        except Exception:
            _log("the device cannot be made ready for the next client; trying again")
            if not self._finished:
                self._accepting.pause()
                self._loop.call_later(_RETRY_SECONDS, self._detach)
        else:
            self._detached = True
            self._accept_again()

    def _check_handshake(self, connection: Connection) -> None:
        if self._connection is connection and not self._commands.negotiated:
            self._drop(f"the client proposed no version within {HANDSHAKE_SECONDS:g} s")

    # Once a second

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(_TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.descriptors.look_after()
        try:
            if self._connection:
                self.endpoint.tick()
        except Exception:
            _log("serving the client failed")
            self._drop("the client cannot be served any more")
        self._check_message()
        if self._connection or self.descriptors.backlog:
            self._start_timer()

    def _check_message(self) -> None:
        """Let a client go that does not send the rest of a message."""
        connection = self._connection
        now = time.monotonic()
        if connection is None or not connection.unfinished:
            self._stalled_at = -1
        elif self._stalled_at != self.messages:
            self._stalled_at, self._stalled_since = self.messages, now
        elif now - self._stalled_since >= MESSAGE_SECONDS:
            self._drop(f"the client did not send the rest of a message within {MESSAGE_SECONDS:g} s")

    # A client is served

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.endpoint.wakeup_fd)
        self._service()

    def _service(self) -> None:
        """Have the endpoint work, and go on with it soon if there is more."""
        self._service_again = False
        try:
            more = self.endpoint.service()
        except Exception:
            _log("the device failed")
            self._drop("the device failed")
            return
        if more and not self._service_again:
            self._service_again = True
            self._loop.call_soon(self._service)

    def _serve_client(self) -> None:
        connection, reader = self._connection, self._reader
        self._again = False
        if connection is None or reader is None:
            return
        try:
            self._take_turn(connection, reader)
        except (Disconnected, ProtocolError) as error:
            self._drop(str(error))
        except Exception:
            _log("serving the client failed")
            self._drop("the client cannot be served any more")
        self._service()

    def _take_turn(self, connection: Connection, reader: Handle) -> None:
        until = time.monotonic() + TURN_SECONDS
        if connection.blocked:
            connection.flush()
        more = self._take_messages(connection, until)
        if not (more or connection.blocked):
            connection.receive()
            more = self._take_messages(connection, until)
            if not more and self._loop.alone(reader):
                more = self._stay_with(connection, until)
        if not connection.blocked and self._commands.rejected:
            raise Disconnected("the client cannot be served")
        reader.want_write(connection.blocked)
        if more and not connection.blocked and not self._again:
            self._again = True
            self._loop.call_soon(self._serve_client)

    def _stay_with(self, connection: Connection, until: float) -> bool:
        """Take what a client goes on to say, without asking each time who else there is; return whether more is here.

        Whoever else there is - another client, :meth:`Loop.stop` - is seen after TURN_SECONDS, or twice that if the
        client falls silent just then.
        """
        seen = -1
        while (
            seen != connection.messages_seen
            and self._commands.negotiated
            and not (self._loop.stopping or self.endpoint.main_thread_must_interrupt)
        ):
            seen = connection.messages_seen
            over = connection.serve_accesses(self.endpoint, self._commands.access_limit, until)
            if over or self._take_messages(connection, until):
                return True
        return False

    def _take_messages(self, connection: Connection, until: float) -> bool:
        """Carry out the messages that are here; return whether it is ``until``, so that some may be left."""
        if connection.answer_accesses(self.endpoint, self._commands.access_limit, until):
            return True
        for message in connection.messages():
            fds = message[4]
            try:
                reply = self._commands.answer(message)
            finally:
                if fds:  # whatever no command took
                    self.descriptors.close(fds)
            if message[5] and self.descriptors.backlog > MAX_BACKLOG:
                raise ProtocolError("the client's descriptors cannot be closed as fast as they come")
            if reply is not None:
                connection.send(*reply)
            if self._commands.rejected:
                return False
            if time.monotonic() >= until:
                return True
            if connection.answer_accesses(self.endpoint, self._commands.access_limit, until):
                return True
        return False


def _hung_up(sock: socket.socket) -> bool:
    """Return whether the peer closed its end."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))


def _log(what: str) -> None:
    """Log an exception; out of memory, even that may fail."""
    with contextlib.suppress(Exception):
        log.exception("%s", what)
