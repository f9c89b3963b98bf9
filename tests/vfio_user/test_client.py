"""The client against servers that lie: what tests of the server do not show."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from nodma.errors import Disconnected, ProtocolError
from nodma.spec.vfio_user import Cmd, DeviceInfo, Header, RegionIoFds, SubRegionIoFd
from nodma.vfio_user import Client
from nodma.vfio_user import client as client_module

Answer = tuple[bytes, list[int]]


@contextmanager
def lying(*answers: Answer) -> Iterator[Client]:
    """A client of a server that answers with these after the handshake, whatever it is asked."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    known: dict[int, Answer] = {Cmd.VERSION: (bytes(4), []), Cmd.DEVICE_GET_INFO: (bytes(DeviceInfo.size), [])}
    left = list(answers)

    def serve() -> None:
        while header := ours.recv(Header.size):
            msg_id, command, size, _, _ = Header.codec.unpack(header)
            ours.recv(size - Header.size)
            body, fds = known.pop(command) if command in known else left.pop(0)
            reply = Header.codec.pack(msg_id, command, Header.size + len(body), 1, 0) + body
            socket.send_fds(ours, [reply], fds)

    server = threading.Thread(target=serve)
    server.start()
    try:
        with Client(theirs) as client:
            yield client
    finally:
        server.join(timeout=30)
        ours.close()


@pytest.fixture
def eventfd(count_descriptors: Any) -> Iterator[int]:
    before = count_descriptors()
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)
    assert count_descriptors.settles(before)


def io_fds(count: int, *parts: tuple[int, ...]) -> bytes:
    array = b"".join(SubRegionIoFd.codec.pack(*part) for part in parts)
    return RegionIoFds.codec.pack(RegionIoFds.size + count * SubRegionIoFd.size, 0, 0, count) + array


def test_eventfds_of_a_region_are_each_the_callers_own(eventfd: int) -> None:
    parts = [(0x3000, 2, 0, 0, 0, 0, 0), (0x3004, 0, 0, 0, 0, 0, 0), (0, 4, 0, 1, 0, 0, 0), (0, 4, 0, 0, 1, 0, 7)]
    with lying((io_fds(4), []), (io_fds(4, *parts), [eventfd])) as client:
        found = client.region_io_fds(0)
    assert [(part.offset, part.size) for part in found] == [(0x3000, 2), (0x3004, 0)]
    for part in found:
        os.eventfd_write(part.fd, 1)
        os.close(part.fd)
    assert os.eventfd_read(eventfd) == 2


def test_a_served_region_has_the_doorbells_of_its_queues(served: Any) -> None:
    with Client(served.connect()) as client:
        found = client.region_io_fds(0)
        assert [(bell.offset, bell.size) for bell in found] == [(0x3000, 4), (0x3004, 4)]
        assert client.region_io_fds(2) == []
        for bell, queues in zip(found, served.function.core.doorbells, strict=True):
            assert os.path.sameopenfile(bell.fd, queues)
            os.close(bell.fd)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        io_fds(1)[:15],
        io_fds(2, (0, 2, 0, 0, 0, 0, 0)),
        io_fds(1),
        io_fds(1, (0, 2, 1, 0, 0, 0, 0)),
        struct.pack("<4I", 56, 0, 0, 2**32 - 1),
    ],
    ids=range(6),
)
def test_nonsense_about_eventfds_is_refused_and_leaves_none_open(eventfd: int, answer: bytes) -> None:
    with lying((io_fds(1), [eventfd]), (answer, [eventfd])) as client, pytest.raises(ProtocolError):
        client.region_io_fds(0)


def test_a_command_has_one_deadline_however_the_answer_is_dealt_out(
    monkeypatch: pytest.MonkeyPatch, count_descriptors: Any
) -> None:
    """Each byte comes soon after the last, and the last never comes."""
    before = count_descriptors()
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    gone = threading.Event()

    def deal_out() -> None:
        eventfd = os.eventfd(0)
        answer = Header.codec.pack(1, Cmd.VERSION, 1 << 20, 1, 0) + bytes(1 << 20)
        with contextlib.suppress(OSError):
            socket.send_fds(ours, [answer[:1]], [eventfd])
            for byte in answer[1:]:
                if gone.wait(0.02):
                    break
                ours.sendall(bytes([byte]))
        os.close(eventfd)

    server = threading.Thread(target=deal_out)
    server.start()
    monkeypatch.setattr(client_module, "TIMEOUT_SECONDS", 0.3)
    with pytest.raises(Disconnected, match=r"did not answer VERSION within 0\.3 s"):
        Client(theirs)
    gone.set()
    server.join(timeout=30)
    ours.close()
    assert count_descriptors.settles(before)
