"""Messages out of a stream, and the descriptors that belong to them."""

from __future__ import annotations

import os
import socket

import pytest

from nodma.errors import Disconnected
from nodma.spec.vfio_user import Header
from nodma.vfio_user.connection import MAX_FDS, Connection
from nodma.vfio_user.descriptors import Descriptors


def message(serial: int, payload: bytes = b"") -> bytes:
    return Header.codec.pack(serial, 13, 16 + len(payload), 0, 0) + payload


def take(connection: Connection) -> list[tuple[int, bytes, int]]:
    """Serial, payload and number of descriptors of each message that is there; the descriptors are closed."""
    found = []
    for msg_id, _, _, payload, fds, _ in connection.messages():
        found.append((msg_id, bytes(payload or b""), len(fds)))
        for fd in fds:
            os.close(fd)
    return found


def test_descriptors_go_with_the_message_that_they_came_with(pair: tuple[Connection, socket.socket]) -> None:
    connection, theirs = pair
    fd = os.eventfd(0)
    theirs.sendall(message(1) + message(2, b"two"))
    socket.send_fds(theirs, [message(3, b"three")], [fd, fd])
    theirs.sendall(message(4))
    socket.send_fds(theirs, [message(5)], [fd])
    os.close(fd)
    found = []
    for _ in range(4):
        connection.receive()
        found += take(connection)
    assert found == [(1, b"", 0), (2, b"two", 0), (3, b"three", 2), (4, b"", 0), (5, b"", 1)]


def test_descriptors_with_half_a_message_wait_for_the_rest(pair: tuple[Connection, socket.socket]) -> None:
    connection, theirs = pair
    fd = os.eventfd(0)
    whole = message(1, b"payload")
    socket.send_fds(theirs, [whole[:10]], [fd])
    connection.receive()
    assert take(connection) == []
    theirs.sendall(whole[10:])
    connection.receive()
    assert take(connection) == [(1, b"payload", 1)]
    socket.send_fds(theirs, [whole[:5]], [fd])  # and one that never comes
    connection.receive()
    os.close(fd)


def test_more_descriptors_than_any_message_may_have_are_dropped(
    pair: tuple[Connection, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    connection, theirs = pair
    fd = os.eventfd(0)
    socket.send_fds(theirs, [message(1)], [fd] * 100)
    os.close(fd)
    closed: list[int] = []
    monkeypatch.setattr(Descriptors, "close", lambda _, fds: closed.extend(fds))
    connection.receive()
    ((_, _, count),) = take(connection)
    assert (count, len(closed)) == (MAX_FDS, 100 - MAX_FDS)  # none was left to the kernel to close
    for fd in closed:
        os.close(fd)


def test_a_message_larger_than_the_buffer_makes_it_grow(pair: tuple[Connection, socket.socket]) -> None:
    connection, theirs = pair
    payload = os.urandom(1 << 20)
    stream = message(1) + message(2, payload) + message(3)
    theirs.setblocking(False)
    at, found = 0, []
    while at < len(stream):
        at += theirs.send(stream[at : at + 50_000])
        connection.receive()
        found += take(connection)
    while len(found) < 3:
        connection.receive()
        found += take(connection)
    assert found == [(1, b"", 0), (2, payload, 0), (3, b"", 0)]


def test_replies_wait_and_hold_further_messages_back(pair: tuple[Connection, socket.socket]) -> None:
    connection, theirs = pair
    theirs.sendall(message(1) + message(2))
    connection.receive()
    connection.send(b"r" * (1 << 20))
    assert connection.blocked
    assert take(connection) == []
    got = 0
    while connection.blocked:
        got += len(theirs.recv(1 << 16))
        connection.flush()
    assert take(connection) == [(1, b"", 0), (2, b"", 0)]
    while got < 1 << 20:
        got += len(theirs.recv(1 << 16))


def test_the_end_of_the_stream_is_told(pair: tuple[Connection, socket.socket]) -> None:
    connection, theirs = pair
    connection.receive()  # nothing there is no end
    theirs.close()
    with pytest.raises(Disconnected):
        connection.receive()
    with pytest.raises(Disconnected):
        connection.send(b"x")
