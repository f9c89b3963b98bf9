"""A raw client of the vfio-user protocol, that sends what it is told to, right or wrong."""

from __future__ import annotations

import array
import importlib
import json
import socket
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from nodma import builds
from nodma.spec.vfio_user import Cmd, Header, MsgFlag, Version
from nodma.vfio_user.connection import Connection
from nodma.vfio_user.descriptors import Descriptors

TYPE_REPLY = 1


class Raw:
    """A connected socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.serial = 0

    def send(self, command: int, payload: bytes = b"", *, flags: int = 0, fds: tuple[int, ...] = ()) -> int:
        self.serial = (self.serial + 1) & 0xFFFF
        message = Header.codec.pack(self.serial, command, Header.size + len(payload), flags, 0) + payload
        if fds:
            sent = socket.send_fds(self.sock, [message], list(fds))
            message = message[sent:]
        self.sock.sendall(message)
        return self.serial

    def receive(self) -> tuple[tuple[int, ...], bytes, list[int]]:
        """The next message: header, payload, descriptors."""
        fds = array.array("i")
        data = b""
        want = Header.size
        while len(data) < want:
            part, ancillary, _, _ = self.sock.recvmsg(want - len(data), 1024)
            if not part:
                raise EOFError
            for _, _, raw in ancillary:
                fds.frombytes(raw)
            data += part
            if len(data) == Header.size:
                want = Header.codec.unpack(data)[2]
        return Header.codec.unpack(data[: Header.size]), data[Header.size :], list(fds)

    def call(self, command: int, payload: bytes = b"", **more: Any) -> tuple[int, bytes, list[int]]:
        """Send a command; gives errno (0 if none), payload and descriptors of its reply."""
        serial = self.send(command, payload, **more)
        (msg_id, answered, _, flags, error), body, fds = self.receive()
        assert (msg_id, answered, flags & 0xF) == (serial, command, TYPE_REPLY)
        assert bool(flags & MsgFlag.ERROR) == bool(error)
        if error:
            assert body == b""
        return error, body, fds

    def hello(self, capabilities: dict[str, Any] | None = None) -> dict[str, Any]:
        proposal = {"max_msg_fds": 16, "max_data_xfer_size": 1 << 20, "pgsizes": 4096, "write_multiple": True}
        data = json.dumps({"capabilities": proposal if capabilities is None else capabilities}).encode() + b"\0"
        error, body, _ = self.call(Cmd.VERSION, Version.codec.pack(0, 0) + data)
        assert error == 0
        answer: dict[str, Any] = json.loads(body[Version.size :].rstrip(b"\0"))["capabilities"]
        return answer

    def ended(self) -> bool:
        """Whether the server closed the connection, after whatever it still sent."""
        try:
            while self.sock.recv(1 << 16):
                pass
        except ConnectionResetError:
            pass
        return True

    def close(self) -> None:
        self.sock.close()


@pytest.fixture
def connect(served: Any) -> Iterator[Callable[[], Raw]]:
    """Make raw clients of the served disk."""
    made: list[Raw] = []

    def make() -> Raw:
        made.append(Raw(served.connect()))
        return made[-1]

    yield make
    for raw in made:
        raw.close()


@pytest.fixture
def client(connect: Callable[[], Raw]) -> Raw:
    """A raw client that has said hello."""
    raw = connect()
    raw.hello()
    return raw


@pytest.fixture(params=["interpreted", "compiled"])
def stream(request: pytest.FixtureRequest) -> ModuleType:
    """The connection's module: interpreted, or compiled if it was built."""
    name = "nodma.vfio_user.stream"
    if request.param == "interpreted":
        return builds.load_interpreted(name)
    module = importlib.import_module(name)
    if not builds.is_compiled(module):
        pytest.skip("the connection was not compiled here: there is no C compiler")
    return module


@pytest.fixture
def pair(stream: ModuleType, count_descriptors: Any) -> Iterator[tuple[Connection, socket.socket]]:
    """A connection, and its client's end."""
    before = count_descriptors()
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    connection = stream.Connection(ours, Descriptors())
    yield connection, theirs
    connection.close()
    theirs.close()
    assert count_descriptors.settles(before)
