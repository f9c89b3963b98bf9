"""The driver's end of vhost-user, as much of it as a block device takes.

Source: docs/interop/vhost-user.rst in QEMU. Messages are a header and a payload, little-endian.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import Final, Self

from nodma.errors import Disconnected, ProtocolError
from nodma.spec.layout import Layout, le32, le64

_VERSION: Final = 1
_REPLY: Final = 1 << 2
_NEED_REPLY: Final = 1 << 3
_TIMEOUT_SECONDS: Final = 10.0


class Request(IntEnum):
    """Messages of the front end."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    SET_VRING_ENABLE = 18
    GET_CONFIG = 24


PROTOCOL_FEATURES: Final = 1 << 30
"""VHOST_USER_F_PROTOCOL_FEATURES, a bit among virtio's features."""


class ProtocolFeature(IntEnum):
    """Protocol features, by bit number."""

    MQ = 0
    REPLY_ACK = 3
    CONFIG = 9

    @property
    def mask(self) -> int:
        """The feature as a mask."""
        return 1 << self.value


class Header(Layout):
    """What every message begins with; ``size_bytes`` counts the payload."""

    request = le32()
    flags = le32()
    size_bytes = le32()


class Number(Layout):
    """A u64: features, an answer, or the index of the queue that a descriptor is for."""

    value = le64()


class MemoryTable(Layout):
    """SET_MEM_TABLE of one region, whose descriptor comes along."""

    regions = le32(1)
    padding = le32()
    guest_address = le64()
    size_bytes = le64()
    user_address = le64()
    mmap_offset = le64()


class VringState(Layout):
    """A number for a queue."""

    index = le32()
    number = le32()


class VringAddress(Layout):
    """SET_VRING_ADDR: user addresses."""

    index = le32()
    flags = le32()
    desc = le64()
    used = le64()
    avail = le64()
    log = le64()


class ConfigHead(Layout):
    """GET_CONFIG, before the bytes of configuration space."""

    offset = le32()
    size_bytes = le32()
    flags = le32()


class Connection:
    """A back end's socket. Methods raise Disconnected when it is gone, ProtocolError when it answers nonsense."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(_TIMEOUT_SECONDS)
        self._acknowledges = False
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise Disconnected(f"nobody listens at {path}: {error.strerror or error}") from error

    def negotiate(self, wanted: int, protocol: int) -> int:
        """Accept what is offered of virtio's features and of the protocol's; give the former. Become the owner."""
        self.send(Request.SET_OWNER)
        offered = self.ask(Request.GET_FEATURES)
        accepted = offered & (wanted | PROTOCOL_FEATURES)
        if offered & PROTOCOL_FEATURES:
            protocol &= self.ask(Request.GET_PROTOCOL_FEATURES)
            self.send(Request.SET_PROTOCOL_FEATURES, Number.new(value=protocol))
            self._acknowledges = bool(protocol & ProtocolFeature.REPLY_ACK.mask)
        self.send(Request.SET_FEATURES, Number.new(value=accepted))
        return accepted

    def config(self, length: int) -> bytes:
        """Read the first ``length`` bytes of the device configuration."""
        head = bytes(ConfigHead.new(size_bytes=length))
        answer = self._exchange(Request.GET_CONFIG, head + bytes(length))
        if len(answer) != ConfigHead.size + length:
            raise ProtocolError(f"GET_CONFIG of {length} bytes was answered with {len(answer)}")
        return answer[ConfigHead.size :]

    def ask(self, request: Request) -> int:
        """Ask for a number."""
        answer = self._exchange(request, b"")
        if len(answer) != Number.size:
            raise ProtocolError(f"{request.name} was answered with {len(answer)} bytes")
        return Number(answer).value

    def send(self, request: Request, payload: Layout | None = None, fds: Sequence[int] = ()) -> None:
        """Send what has no answer; where the back end acknowledges, wait for that. Raises ProtocolError if it fails."""
        body = bytes(payload) if payload else b""
        if not self._acknowledges:
            self._put(request, body, fds, _VERSION)
            return
        self._put(request, body, fds, _VERSION | _NEED_REPLY)
        answer = self._take(request)
        if len(answer) != Number.size or Number(answer).value:
            raise ProtocolError(f"the back end failed at {request.name}")

    def close(self) -> None:
        """Disconnect."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _exchange(self, request: Request, body: bytes) -> bytes:
        self._put(request, body, (), _VERSION)
        return self._take(request)

    def _put(self, request: Request, body: bytes, fds: Sequence[int], flags: int) -> None:
        message = bytes(Header.new(request=request, flags=flags, size_bytes=len(body))) + body
        try:
            sent = socket.send_fds(self._socket, [message], list(fds))
            self._socket.sendall(message[sent:])
        except OSError as error:
            raise Disconnected(f"the back end is gone at {request.name}: {error.strerror or error}") from error

    def _take(self, request: Request) -> bytes:
        header = Header(self._receive(Header.size, request))
        if header.request != request or header.flags & ~_NEED_REPLY != _VERSION | _REPLY:
            raise ProtocolError(f"{request.name} was answered with message {header.request}, flags {header.flags:#x}")
        return self._receive(header.size_bytes, request)

    def _receive(self, count: int, request: Request) -> bytes:
        data = b""
        while len(data) < count:
            try:
                piece = self._socket.recv(count - len(data))
            except OSError as error:
                raise Disconnected(f"no answer to {request.name}: {error.strerror or error}") from error
            if not piece:
                raise Disconnected(f"the back end closed the connection at {request.name}")
            data += piece
        return data
