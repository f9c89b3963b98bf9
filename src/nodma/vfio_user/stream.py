"""One client's socket, as messages in and messages out, without ever blocking.

Bytes come in as large pieces as there are, and go out in the order of the messages. While a reply waits
because the client does not read, no further message is taken up: what a client can make the server hold
is one reply and one buffer.
"""

from __future__ import annotations

import array
import os
import socket
from collections import deque
from collections.abc import Iterator
from typing import Final

from nodma.errors import Disconnected, ProtocolError
from nodma.spec.vfio_user import DEFAULT_MAX_TRANSFER, Header, RegionAccess

MAX_FDS: Final = 16
"""Descriptors that one message may carry; the kernel drops, and closes, what comes beyond."""
MAX_MESSAGE: Final = Header.size + RegionAccess.size + DEFAULT_MAX_TRANSFER
"""Bytes of the longest message."""
_PIECE: Final = 64 << 10
_ANCILLARY: Final = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
_HEADER: Final = Header.codec
_HEADER_BYTES: Final = Header.size

Message = tuple[int, int, int, memoryview | None, list[int]]
"""Message id, command, flags, payload (None if it was too long to keep), descriptors."""


class Connection:
    """The server's end of a client's socket, which it owns."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._buffer = bytearray(_PIECE)
        self._begin = self._end = 0
        self._skip = 0  # bytes of an overlong message that are still to come
        self._fds: deque[tuple[int, list[int]]] = deque()  # and the position their message begins at, or a later one
        self._out: deque[tuple[memoryview, list[int]]] = deque()

    @property
    def blocked(self) -> bool:
        """Whether replies wait for the client to read."""
        return bool(self._out)

    def receive(self) -> None:
        """Take what there is. Raises Disconnected at the end of the stream."""
        if self._begin:
            self._compact()
        view = memoryview(self._buffer)[self._end :]
        try:
            count, ancillary, _, _ = self.sock.recvmsg_into([view], _ANCILLARY)
        except BlockingIOError:
            return
        except OSError as error:
            raise Disconnected(f"the client's socket failed: {error.strerror}") from error
        fds = _descriptors(ancillary)
        if not count:
            _close(fds)
            raise Disconnected("the client closed the connection")
        self._end += count
        if fds:
            # The kernel ends a piece with the data that the descriptors came with: they belong to the last
            # message in it.
            self._fds.append((self._end, fds))

    def messages(self) -> Iterator[Message]:
        """Give the whole messages that are there, while no reply waits.

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
                raise ProtocolError(f"a message says it has {size} bytes, its header alone has {_HEADER_BYTES}")
            if size > MAX_MESSAGE:
                self._skip = size - _HEADER_BYTES
                self._begin = begin + _HEADER_BYTES
                yield msg_id, command, flags, None, self._take_fds(self._begin)
                continue
            if available < size:
                self._make_room(size)
                return
            self._begin = begin + size
            payload = memoryview(self._buffer)[begin + _HEADER_BYTES : begin + size]
            yield msg_id, command, flags, payload, self._take_fds(self._begin) if self._fds else []

    def send(self, message: bytes, fds: list[int] | None = None) -> None:
        """Send a message, with descriptors that stay the caller's but must stay open until it is sent.

        Raises Disconnected if the client is gone.
        """
        if not self._out:
            count = self._try(message, fds or [])
            if count == len(message):
                return
            if count:
                fds = None
            message = message[count:]
        self._out.append((memoryview(message), fds or []))

    def flush(self) -> None:
        """Send what waits, as far as the client reads."""
        while self._out:
            message, fds = self._out[0]
            count = self._try(message, fds)
            if count < len(message):
                if count:
                    self._out[0] = (message[count:], [])
                return
            self._out.popleft()

    def close(self) -> None:
        """Close the socket and every descriptor that nobody took."""
        for _, fds in self._fds:
            _close(fds)
        self._fds.clear()
        self._out.clear()
        self.sock.close()

    def _try(self, message: bytes | memoryview, fds: list[int]) -> int:
        try:
            if fds:
                return socket.send_fds(self.sock, [message], fds)
            return self.sock.send(message)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise Disconnected(f"the client is gone: {error.strerror}") from error

    def _take_fds(self, end: int) -> list[int]:
        """Take the descriptors of the message that ends at ``end`` of the buffer."""
        taken = []
        while self._fds and self._fds[0][0] <= end:
            taken += self._fds.popleft()[1]
        return taken

    def _compact(self) -> None:
        """Move what is left to the front of the buffer."""
        begin, left = self._begin, self._end - self._begin
        if left:
            self._buffer[:left] = self._buffer[begin : self._end]
        self._begin, self._end = 0, left
        if self._fds:
            self._fds = deque((end - begin, fds) for end, fds in self._fds)

    def _make_room(self, size: int) -> None:
        """See to it that a message of ``size`` bytes fits behind what is left."""
        if size > len(self._buffer):
            grown = bytearray(size)
            left = self._end - self._begin
            grown[:left] = memoryview(self._buffer)[self._begin : self._end]
            if self._fds:
                self._fds = deque((end - self._begin, fds) for end, fds in self._fds)
            self._buffer, self._begin, self._end = grown, 0, left


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """Give the descriptors that came with a piece."""
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
