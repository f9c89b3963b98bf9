"""One client's socket, as messages in and messages out.

Bytes come in as large pieces as there are, and go out in the order of the messages. While a reply waits
because the client does not read, no further message is taken up: what a client can make the server hold
is one reply and one buffer.

Nothing waits for the client, but for a receive that is told to, and that for RECEIVE_TIMEOUT at most. Of the
descriptors that a client sends only eventfds stay open until their message is whole.

This file runs compiled by Cython, and as it stands when it is not: one source, the same checks.
"""

from __future__ import annotations

import array
import socket
import struct
from collections import deque
from collections.abc import Iterator
from typing import Final

import nodma.vfio_user.socket_io as socket_io
from nodma.errors import Disconnected, ProtocolError
from nodma.spec.vfio_user import (
    DEFAULT_MAX_TRANSFER,
    TYPE_REPLY,
    Cmd,
    Header,
    MsgFlag,
    RegionAccess,
)
from nodma.vfio_user.descriptors import Descriptors
from nodma.vfio_user.endpoint import Endpoint
from nodma.vfio_user.failure import errno_of

MAX_FDS = 16
"""Descriptors that one message may carry; of one piece of it, what comes beyond is closed."""
_KERNEL_FDS: Final = 253
"""Descriptors that come with one piece at most (SCM_MAX_FD). There is room for all: what has none, the kernel closes in
the middle of the receive, and a close can take forever."""
MAX_MESSAGE: Final = Header.size + RegionAccess.size + DEFAULT_MAX_TRANSFER
"""Bytes of the longest message."""
RECEIVE_TIMEOUT: Final = 0.004
"""How long a receive waits for the client, if it is told to."""
_PIECE: Final = 64 << 10
_ANCILLARY = socket.CMSG_SPACE(_KERNEL_FDS * array.array("i").itemsize)
_HEADER: Final = Header.codec
_WAIT = int(socket.MSG_CMSG_CLOEXEC | socket.MSG_NOSIGNAL)
_NOW = int(_WAIT | socket.MSG_DONTWAIT)
_TIMEVAL: Final = struct.Struct("@ll")
_MICROSECONDS: Final = 1_000_000
_HEADER_BYTES = Header.size
_ACCESS_BYTES = Header.size + RegionAccess.size
_READ = int(Cmd.REGION_READ)
_WRITE = int(Cmd.REGION_WRITE)
_NO_REPLY = int(MsgFlag.NO_REPLY)
_REPLY = int(TYPE_REPLY)
_REPLY_ERROR = int(TYPE_REPLY | MsgFlag.ERROR)

Message = tuple[int, int, int, memoryview | None, list[int], int]
"""Message id, command, flags, payload (None if it was too long to keep), eventfds, and how many other descriptors came
with it, which are closed."""


class Connection:
    """The server's end of a client's socket, which it owns. ``descriptors`` closes what nobody takes."""

    def __init__(self, sock: socket.socket, descriptors: Descriptors) -> None:
        sock.setblocking(True)  # all calls but one say that they do not wait
        patience = _TIMEVAL.pack(0, int(RECEIVE_TIMEOUT * _MICROSECONDS))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, patience)
        self.sock = sock
        self._descriptors = descriptors
        self._handle = socket_io.handle(sock)
        self.messages_seen = 0
        """Messages that were taken up."""
        self._buffer = bytearray(_PIECE)
        self._bytes = memoryview(self._buffer)
        self._begin = self._end = 0
        self._skip = 0  # bytes of an overlong message that are still to come
        # The position that their message ends at, or an earlier one in it; eventfds; how many others there were.
        self._fds: deque[tuple[int, list[int], int]] = deque()
        self._received_fds: list[int] = []
        self._out: deque[tuple[memoryview, list[int] | None]] = deque()

    @property
    def blocked(self) -> bool:
        """Whether replies wait for the client to read."""
        return bool(self._out)

    @property
    def unfinished(self) -> bool:
        """Whether a part of a message is here, whose rest is to come; or descriptors that no message took yet."""
        return bool(self._fds) or (not self._out and (self._skip > 0 or self._begin < self._end))

    def receive(self, wait: bool = False) -> bool:
        """Receive what there is, or ``wait`` for something; return whether anything came.

        Raises Disconnected at the end of the stream, ProtocolError for a message with more than MAX_FDS descriptors.
        """
        if self._begin == self._end and not self._fds:
            self._begin = self._end = 0
        elif self._begin:
            self._compact()
        fds = self._received_fds
        try:
            count = socket_io.receive(self._handle, self._bytes, self._end, _WAIT if wait else _NOW, _ANCILLARY, fds)
        except BlockingIOError:
            return False
        except OSError as error:
            raise Disconnected(f"the client's socket failed: {error.strerror}") from error
        if count == 0:
            self._take_in(fds)
            raise Disconnected("the client closed the connection")
        self._end += count
        if fds:
            self._take_in(fds)
            # Those of a message that is not whole yet, and of the next: no client that keeps to the limit has more.
            if _count(self._fds) > 2 * MAX_FDS:
                raise ProtocolError(f"a message carries more than {MAX_FDS} descriptors")
        return True

    def serve_accesses(self, endpoint: Endpoint, limit: int, until: float) -> bool:
        """Answer register accesses as they come, each by one receive and one send.

        Ends at ``until`` (by time.monotonic), and before that when the client says something else, or nothing
        for RECEIVE_TIMEOUT, or when the endpoint has work to do. Returns whether it is ``until``. Raises Disconnected
        at the end of the stream.
        """
        service = endpoint.service
        if self.answer_accesses(endpoint, limit, until):
            return True
        while self._begin == self._end and not self._out and not service() and self.receive(True):
            if self.answer_accesses(endpoint, limit, until):
                return True
        return False

    def answer_accesses(self, endpoint: Endpoint, limit: int, until: float) -> bool:
        """Answer what comes next as long as it is a REGION_READ or REGION_WRITE of up to ``limit`` bytes.

        What is wrong with such a message, in form or of another type, is left to those who take
        :meth:`messages`. Returns whether it is ``until`` (by time.monotonic), so that others must have their turn.
        Raises Disconnected if the client is gone.
        """
        while self._end - self._begin >= _ACCESS_BYTES and not (self._skip or self._fds or self._out):
            begin = self._begin
            msg_id, command, size, flags, _, offset, region, count = socket_io.load_access(self._bytes, begin)
            end = begin + (_ACCESS_BYTES if command == _READ else _ACCESS_BYTES + count)
            if (
                (command != _READ and command != _WRITE)
                or (flags and flags != _NO_REPLY)
                or count > limit
                or size != end - begin
                or end > self._end
            ):
                return False
            self._begin = end
            self.messages_seen += 1
            data = b""
            try:
                if command == _READ:
                    data = endpoint.read(region, offset, count)
                else:
                    endpoint.write(region, offset, bytes(self._buffer[begin + _ACCESS_BYTES : end]))
            except Exception as error:
                answer = _HEADER.pack(msg_id, command, _HEADER_BYTES, _REPLY_ERROR, errno_of(error, msg_id, command))
            else:
                size = _ACCESS_BYTES + len(data)
                answer = socket_io.pack_access(msg_id, command, size, _REPLY, 0, offset, region, count) + data
            if not flags:
                sent = self._try(answer, None)
                if sent < len(answer):
                    self._out.append((memoryview(answer)[sent:], None))
            if socket_io.now() >= until:
                return True
        return False

    def messages(self) -> Iterator[Message]:
        """Yield the complete messages that have arrived, while no reply waits.

        The payload is good until the next :meth:`receive`, the descriptors are the caller's. Raises
        ProtocolError if the stream cannot be followed any further.
        """
        while not self._out:
            if self._skip:
                step = min(self._skip, self._end - self._begin)
                self._begin += step
                self._skip -= step
            available = self._end - self._begin
            if self._skip or available < _HEADER_BYTES:
                return
            begin = self._begin
            msg_id, command, size, flags, _ = _HEADER.unpack_from(self._buffer, begin)
            if size < _HEADER_BYTES:
                raise ProtocolError(f"message size is {size} bytes, expected at least the header's {_HEADER_BYTES}")
            if size > MAX_MESSAGE:
                self._skip = size - _HEADER_BYTES
                self._begin = begin + _HEADER_BYTES
                self.messages_seen += 1
                yield msg_id, command, flags, None, *self._take_fds(self._begin)
                continue
            if available < size:
                self._make_room(size)
                return
            self._begin = begin + size
            self.messages_seen += 1
            payload = memoryview(self._buffer)[begin + _HEADER_BYTES : begin + size]
            yield msg_id, command, flags, payload, *self._take_fds(self._begin)

    def send(self, message: bytes, fds: list[int] | None = None) -> None:
        """Send a message, with descriptors that stay the caller's but must stay open until it is sent.

        Raises Disconnected if the client is gone.
        """
        count = 0 if self._out else self._try(message, fds)
        if count < len(message):
            self._out.append((memoryview(message)[count:], None if count else fds))

    def flush(self) -> None:
        """Send what waits, as far as the client reads."""
        while self._out:
            message, fds = self._out[0]
            count = self._try(message, fds)
            if count < len(message):
                if count:
                    self._out[0] = (message[count:], None)
                return
            self._out.popleft()

    def close(self) -> None:
        """Close the socket and every descriptor that nobody took."""
        parked = [fd for _, fds, _ in self._fds for fd in fds] + self._received_fds
        self._fds.clear()
        self._received_fds = []
        self._out.clear()
        self._descriptors.close(parked)
        self._descriptors.close_socket(self.sock)

    def _try(self, message: bytes | memoryview, fds: list[int] | None) -> int:
        try:
            if fds:
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
                return self.sock.sendmsg([message], [rights], _NOW)
            return socket_io.send(self._handle, message, _NOW)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise Disconnected(f"the client is gone: {error.strerror}") from error

    def _take_in(self, fds: list[int]) -> None:
        """Keep what of the descriptors may be of use until their message is whole; the others are closed right now."""
        if len(fds) > MAX_FDS:
            self._descriptors.close(fds[MAX_FDS:])
            del fds[MAX_FDS:]
        kept = self._descriptors.screen(fds)
        # The kernel ends a piece with the data that the descriptors came with: they belong to the last message in it.
        self._fds.append((self._end, kept, len(fds) - len(kept)))
        self._received_fds = []

    def _take_fds(self, end: int) -> tuple[list[int], int]:
        """Take the descriptors of the message that ends at ``end`` of the buffer, and the number of those closed."""
        taken: list[int] = []
        closed = 0
        while self._fds and self._fds[0][0] <= end:
            _, fds, refused = self._fds.popleft()
            taken += fds
            closed += refused
        return taken, closed

    def _compact(self) -> None:
        """Move what is left to the front of the buffer."""
        begin, left = self._begin, self._end - self._begin
        if left:
            self._buffer[:left] = self._buffer[begin : self._end]
        self._begin, self._end = 0, left
        if self._fds:
            self._move_fds(begin)

    def _make_room(self, size: int) -> None:
        """Make sure that a message of ``size`` bytes fits after what is left."""
        if size > len(self._buffer):
            grown = bytearray(size)
            left = self._end - self._begin
            grown[:left] = memoryview(self._buffer)[self._begin : self._end]
            if self._fds:
                self._move_fds(self._begin)
            self._buffer, self._begin, self._end = grown, 0, left
            self._bytes = memoryview(grown)

    def _move_fds(self, by: int) -> None:
        self._fds = deque((end - by, fds, refused) for end, fds, refused in self._fds)


def _count(waiting: deque[tuple[int, list[int], int]]) -> int:
    """Count descriptors whose messages are not whole."""
    return sum(len(fds) + refused for _, fds, refused in waiting)
