"""Register accesses, which a connection answers by itself: exactly as the commands would, and until when."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodma.errors import Disconnected, ProtocolError, UsageError
from nodma.spec.vfio_user import Cmd, Header, MsgFlag, RegionAccess, Version
from nodma.vfio_user.commands import Commands
from nodma.vfio_user.connection import Connection
from nodma.vfio_user.descriptors import Descriptors
from nodma.vfio_user.guard import DmaGuard

PAST, LATER = 0.0, float("inf")
LIMIT = 8
NO_REPLY = int(MsgFlag.NO_REPLY)
FAILING, MISSING = 0xF, 0x100
RESET = Header.codec.pack(3, Cmd.DEVICE_RESET, Header.size, 0, 0)

Pair = tuple[Connection, socket.socket]


class Registers:
    """An endpoint that keeps account of what is asked of it, and fails where it is to."""

    regions: Any = None
    interrupts: Any = None
    window: Any = None
    wakeup_fd = -1
    main_thread_must_interrupt = False

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.busy = False

    def read(self, region: int, offset: int, count: int) -> bytes:
        self.calls.append(("read", region, offset, count))
        self._fail(offset)
        return bytes((offset + at) & 0xFF for at in range(count))

    def write(self, region: int, offset: int, data: bytes) -> None:
        assert type(data) is bytes
        self.calls.append(("write", region, offset, data))
        self._fail(offset)

    def _fail(self, offset: int) -> None:
        if offset >= MISSING:
            raise UsageError("there is no such register")
        if offset == FAILING:
            raise ZeroDivisionError

    def write_all(self, writes: Sequence[tuple[int, int, bytes]]) -> None:
        for write in writes:
            self.write(*write)

    def paused_queues(self) -> nullcontext[None]:
        return nullcontext()

    def notifiers(self, region: int) -> Sequence[tuple[int, int, int]]:
        return ()

    def service(self) -> bool:
        self.calls.append(("service",))
        return self.busy

    def reset(self) -> None:
        self.calls.append(("reset",))

    def detach(self) -> None: ...


def read(serial: int, offset: int, count: int = 4, flags: int = 0) -> bytes:
    header = Header.codec.pack(serial, Cmd.REGION_READ, 32, flags, 0)
    return header + RegionAccess.codec.pack(offset, 0, count)


def write(serial: int, offset: int, data: bytes, flags: int = 0) -> bytes:
    header = Header.codec.pack(serial, Cmd.REGION_WRITE, 32 + len(data), flags, 0)
    return header + RegionAccess.codec.pack(offset, 0, len(data)) + data


def test_accesses_are_answered_until_something_else_comes(pair: Pair) -> None:
    connection, theirs = pair
    registers = Registers()
    theirs.sendall(read(1, 4) + write(2, 8, b"data") + RESET + read(4, 4))
    connection.receive()
    connection.answer_accesses(registers, LIMIT, LATER)
    assert registers.calls == [("read", 0, 4, 4), ("write", 0, 8, b"data")]
    assert theirs.recv(1000) == (
        Header.codec.pack(1, Cmd.REGION_READ, 36, 1, 0) + read(1, 4)[16:] + b"\4\5\6\7"
        + Header.codec.pack(2, Cmd.REGION_WRITE, 32, 1, 0) + write(2, 8, b"data")[16:32]
    )  # fmt: skip
    assert connection.messages_seen == 2
    assert [message[0] for message in connection.messages()] == [3, 4]
    assert connection.messages_seen == 4


def test_no_access_is_answered_before_version(pair: Pair) -> None:
    connection, theirs = pair
    commands = Commands(Registers(), DmaGuard())
    theirs.sendall(read(1, 4, count=0))
    connection.receive()
    connection.answer_accesses(commands.endpoint, commands.access_limit, LATER)
    assert connection.messages_seen == 0


def test_a_conversation_ends_when_the_client_says_something_else(pair: Pair) -> None:
    connection, theirs = pair
    theirs.sendall(read(1, 4) + RESET)
    connection.serve_accesses(Registers(), LIMIT, LATER)
    assert [message[0] for message in connection.messages()] == [3]


def test_a_conversation_ends_when_the_client_is_silent(pair: Pair) -> None:
    connection, theirs = pair
    theirs.sendall(read(1, 4))
    connection.serve_accesses(Registers(), LIMIT, time.monotonic() + 60)
    assert connection.messages_seen == 1
    theirs.sendall(read(2, 4)[:20])  # half a message
    connection.serve_accesses(Registers(), LIMIT, LATER)
    theirs.sendall(read(2, 4)[20:])
    connection.receive()
    connection.serve_accesses(Registers(), LIMIT, LATER)
    assert connection.messages_seen == 2
    theirs.close()
    with pytest.raises(Disconnected):
        connection.serve_accesses(Registers(), LIMIT, LATER)


def test_a_conversation_ends_when_its_time_is_over(pair: Pair) -> None:
    connection, theirs = pair
    registers = Registers()
    theirs.sendall(read(1, 4))
    connection.receive()
    theirs.sendall(read(2, 4))
    assert connection.serve_accesses(registers, LIMIT, PAST)  # so that others have their turn
    assert registers.calls == [("read", 0, 4, 4)]
    assert not connection.serve_accesses(registers, LIMIT, LATER)  # the client fell silent


def test_a_conversation_ends_when_there_is_work(pair: Pair) -> None:
    connection, theirs = pair
    registers = Registers()
    registers.busy = True
    theirs.sendall(write(1, 4, b"go"))
    connection.receive()
    theirs.sendall(read(2, 4))
    connection.serve_accesses(registers, LIMIT, LATER)
    assert registers.calls == [("write", 0, 4, b"go"), ("service",)]


def test_accesses_wait_while_the_client_does_not_read(pair: Pair) -> None:
    connection, theirs = pair
    registers = Registers()
    theirs.sendall(read(1, 4))
    connection.receive()
    connection.send(b"r" * (1 << 20))
    connection.serve_accesses(registers, LIMIT, LATER)
    assert registers.calls == []
    while connection.blocked:
        theirs.recv(1 << 16)
        connection.flush()
    connection.answer_accesses(registers, LIMIT, LATER)
    assert registers.calls == [("read", 0, 4, 4)]


@pytest.mark.parametrize("main_thread_must_interrupt", [False, True])
def test_a_server_stays_with_its_client_if_nothing_is_urgent(
    make_served: Any, monkeypatch: pytest.MonkeyPatch, main_thread_must_interrupt: bool
) -> None:
    served = make_served()
    with served.connect() as client:
        client.sendall(Header.codec.pack(0, Cmd.VERSION, 20, 0, 0) + Version.codec.pack(0, 0))
        served.loop.step()  # accepts it
        served.loop.step(0)
        services: list[int] = []
        monkeypatch.setattr(served.function, "service", lambda: bool(services.append(1)))
        monkeypatch.setattr(served.function.core, "main_thread_must_interrupt", main_thread_must_interrupt)
        client.sendall(read(1, 4))
        served.loop.step()
        # before it waits for its client, it asks whether there is work
        assert (len(services) == 1) == main_thread_must_interrupt
    served.close()


offsets = st.one_of(st.integers(0, 20), st.integers(0, 2**64 - 1))
flags = st.sampled_from([0, 0, 0, NO_REPLY, 1, 2, 0x80000000])
accesses = st.one_of(
    st.builds(read, st.integers(0, 9), offsets, st.one_of(st.integers(0, 10), st.integers(0, 2**32 - 1)), flags),
    st.builds(write, st.integers(0, 9), offsets, st.binary(max_size=10), flags),
    st.builds(
        lambda command, size, rest: Header.codec.pack(5, command, size, 0, 0) + rest,
        st.sampled_from([Cmd.REGION_READ, Cmd.REGION_WRITE, Cmd.DEVICE_RESET]),
        st.integers(15, 48),
        st.binary(max_size=32),
    ),
)


def played(stream: ModuleType, parts: list[bytes], fds: set[int], *, itself: bool, transfer: int) -> Any:
    """What a client reads, and what the endpoint is asked, with accesses answered by the connection or by none."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    descriptors = Descriptors()
    connection = stream.Connection(ours, descriptors)
    registers = Registers()
    commands = Commands(registers, DmaGuard())
    hello = Version.codec.pack(0, 0) + b'{"capabilities":{"max_data_xfer_size":%d}}\0' % transfer
    stray = os.memfd_create("stray")
    theirs.sendall(Header.codec.pack(0, Cmd.VERSION, 16 + len(hello), 0, 0) + hello)
    got = b""
    with theirs, suppress(ProtocolError):
        for place, part in enumerate([b"", *parts]):
            if part:
                socket.send_fds(theirs, [part], [stray] if place in fds else [])
            while connection.receive():
                take_up(connection, commands, itself)
            with suppress(BlockingIOError):
                got += theirs.recv(1 << 16, socket.MSG_DONTWAIT)
    connection.close()
    os.close(stray)
    deadline = time.monotonic() + 30
    while descriptors.backlog:  # they are closed where nobody else waits for it
        assert time.monotonic() < deadline
        descriptors.look_after()
    descriptors.end()
    return got, registers.calls, connection.messages_seen


def take_up(connection: Connection, commands: Commands, itself: bool) -> None:
    """Answer what is there, as a server does."""
    if itself:
        connection.answer_accesses(commands.endpoint, commands.access_limit, LATER)
    for message in connection.messages():
        answer = commands.answer(message)
        for fd in message[4]:
            os.close(fd)
        if answer:
            connection.send(*answer)
        if itself:
            connection.answer_accesses(commands.endpoint, commands.access_limit, LATER)


@given(
    sent=st.lists(accesses, max_size=8),
    cut=st.integers(1, 70),
    fds=st.sets(st.integers(0, 10), max_size=2),
    transfer=st.sampled_from([0, 3, 8, 1 << 20]),
)
def test_a_connection_answers_exactly_as_the_commands_do(
    stream: ModuleType, sent: list[bytes], cut: int, fds: set[int], transfer: int, count_descriptors: Any
) -> None:
    before = count_descriptors()
    data = b"".join(sent)
    parts = [data[at : at + cut] for at in range(0, len(data), cut)]
    by_itself = played(stream, parts, fds, itself=True, transfer=transfer)
    assert by_itself == played(stream, parts, fds, itself=False, transfer=transfer)
    assert count_descriptors.settles(before)
