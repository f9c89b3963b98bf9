"""Descriptors of clients: which are kept, and what closing the others can cost."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from nodma.loop import Loop
from nodma.vfio_user import descriptors as module
from nodma.vfio_user.descriptors import Descriptors


@pytest.fixture
def descriptors(count_descriptors: Any) -> Iterator[Descriptors]:
    before = count_descriptors()
    made = Descriptors()
    yield made
    settle(made, 0)
    made.end()
    assert count_descriptors.settles(before)


def settle(descriptors: Descriptors, backlog: int) -> None:
    """Wait until no more than so many descriptors are left to be closed."""
    deadline = time.monotonic() + 20
    while descriptors.backlog > backlog:
        assert time.monotonic() < deadline, f"{descriptors.backlog} are still not closed"
        descriptors.look_after()


class Lingering:
    """Sockets whose last close waits for a thousand seconds: their peers do not read."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._peers: list[socket.socket] = []

    def make(self) -> int:
        """A descriptor, the only one of its socket, which is the caller's to close."""
        sock = socket.create_connection(self._listener.getsockname())
        self._peers.append(self._listener.accept()[0])
        sock.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                sock.send(bytes(1 << 16))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 1000))
        return sock.detach()

    def close(self) -> None:
        for peer in self._peers:
            peer.close()
        self._listener.close()


@pytest.fixture
def lingering() -> Iterator[Lingering]:
    made = Lingering()
    yield made
    made.close()


def test_eventfds_are_kept_and_all_others_closed(descriptors: Descriptors, count_descriptors: Any) -> None:
    eventfd = os.eventfd(0)
    before = count_descriptors()
    read_end, write_end = os.pipe()
    files = [os.open(path, os.O_RDONLY) for path in ("/", os.devnull)]
    others = [os.memfd_create("guest"), read_end, write_end, *files]
    assert descriptors.screen([others[0], eventfd, *others[1:]]) == [eventfd]
    settle(descriptors, 0)
    assert (descriptors.refused, count_descriptors()) == (5, before)
    descriptors.close([eventfd])


def test_a_close_that_waits_keeps_nobody_and_is_ended(
    descriptors: Descriptors, lingering: Lingering, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = lingering.make()
    descriptors.close([fd])  # would take a thousand seconds
    assert descriptors.backlog == 1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    monkeypatch.setattr(module, "_KILL_SECONDS", 0.0)
    settle(descriptors, 0)


def test_there_is_a_limit_to_what_waits_to_be_closed(
    descriptors: Descriptors, lingering: Lingering, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_CHILDREN", 1)
    descriptors.close([lingering.make()])
    descriptors.close([lingering.make()])
    descriptors.look_after()
    assert (descriptors.backlog, len(descriptors._children)) == (2, 1)
    monkeypatch.setattr(module, "_KILL_SECONDS", 0.0)
    settle(descriptors, 0)


def test_what_no_child_can_close_is_counted(descriptors: Descriptors, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "_CLONE", None)
        descriptors.close([os.open("/dev/null", os.O_RDONLY)])
        descriptors.look_after()
        assert descriptors.backlog == 1
    settle(descriptors, 0)


def test_a_clients_socket_that_holds_a_lingering_one_keeps_nobody(
    descriptors: Descriptors, lingering: Lingering, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sent and not received is closed with the socket: the thread that does it is interrupted."""
    loop = Loop()
    loop.call_soon(loop.stop)
    loop.run()
    ours, theirs = socket.socketpair()
    fd = lingering.make()
    with theirs:
        socket.send_fds(theirs, [b"x"], [fd])
        descriptors.close([fd])  # the socket's queue has the last reference now
        descriptors.close_socket(ours)
        descriptors.close_socket(socket.socket())  # behind it in the queue
    settle(descriptors, 0)
    loop.close()


def test_without_a_thread_a_child_does_it(descriptors: Descriptors, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(module.threading.Thread, "start", none_left)
    descriptors.close([os.memfd_create("guest")])
    settle(descriptors, 0)


def test_an_eventfd_whose_last_close_hangs_keeps_a_thread_and_nobody_else(
    descriptors: Descriptors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last close of an eventfd waits for its epoll, which somebody may have wait for a page fault."""
    go_on = threading.Event()
    eventfd, close = os.eventfd(0), os.close

    def hang(fd: int) -> None:
        if fd == eventfd:
            assert threading.current_thread() is not threading.main_thread()
            assert go_on.wait(20)
        close(fd)

    monkeypatch.setattr(module.os, "close", hang)
    descriptors.close([eventfd])
    descriptors.close_socket(socket.socket())  # behind it
    assert descriptors.backlog == 2
    settle(descriptors, 1)  # by another thread
    go_on.set()
    settle(descriptors, 0)
