"""The system calls of the interpreted build: a result, or an errno as a negative number; never an exception."""

from __future__ import annotations

import errno
import os
import select

import pytest

from nodma.ring import syscalls

BAD = -errno.EBADF
CLOSED = 1 << 20  # no descriptor has that number


def test_a_bad_descriptor_is_an_errno() -> None:
    memory = memoryview(bytearray(8))
    assert syscalls.read(CLOSED, memory, [0], [8], 0, 1, 0, 0) == BAD
    assert syscalls.read(CLOSED, memory, [0, 4], [4, 4], 0, 2, 0, 0) == BAD
    assert syscalls.write(CLOSED, memory, [0], [8], 0, 1, 0, 0) == BAD
    assert syscalls.size(CLOSED) == BAD
    assert syscalls.signal(CLOSED) == BAD
    assert syscalls.post(CLOSED, 1) == BAD
    assert syscalls.take(CLOSED) == BAD


def test_a_full_eventfd_and_an_empty_pipe_are_errnos() -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    assert syscalls.signal(fd) == 0
    assert os.eventfd_read(fd) == 1
    os.eventfd_write(fd, 2**64 - 2)
    assert syscalls.signal(fd) == -syscalls.EAGAIN
    os.close(fd)
    reader, writer = os.pipe2(os.O_NONBLOCK)
    assert syscalls.take(reader) == -syscalls.EAGAIN
    assert syscalls.post(writer, 70000) == 4
    assert syscalls.take(reader) == 70000
    os.close(writer)
    assert syscalls.take(reader) == -syscalls.EIO, "its end"
    os.close(reader)


def test_parts_of_the_memory_are_read_and_written_in_order() -> None:
    fd = os.memfd_create("image")
    memory = memoryview(bytearray(b"abcdefgh"))
    assert syscalls.write(fd, memory, [6, 0, 3], [2, 1, 2], 0, 3, 1, 0) == 5
    assert os.pread(fd, 100, 0) == b"\0ghade"
    assert syscalls.size(fd) == 6
    assert syscalls.read(fd, memory, [0, 0, 6], [1, 1, 2], 1, 2, 1, 0) == 3
    assert bytes(memory) == b"gbcdefha"
    assert syscalls.read(fd, memory, [4], [2], 0, 1, 4, 0) == 2
    assert bytes(memory) == b"gbcddeha"
    os.close(fd)


def test_waiting_ends_with_news_and_after_its_time() -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    with select.epoll() as epoll:
        epoll.register(fd, select.EPOLLIN)
        assert syscalls.wait(syscalls.handle(epoll), 1) == 0
        os.eventfd_write(fd, 1)
        assert syscalls.wait(syscalls.handle(epoll), -1) == 1
    os.close(fd)
    before = syscalls.now()
    syscalls.relax()
    syscalls.give_way()
    assert syscalls.now() >= before


def test_flags_reach_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not to wait, and to be durable at once, are the caller's to ask for."""
    seen: list[tuple[int, int, int]] = []

    def called(fd: int, views: object, at: int, flags: int) -> int:
        seen.append((fd, at, flags))
        return 4

    monkeypatch.setattr(os, "preadv", called)
    monkeypatch.setattr(os, "pwritev", called)
    memory = memoryview(bytearray(8))
    assert syscalls.read(7, memory, [0], [4], 0, 1, 512, syscalls.NOWAIT) == 4
    assert syscalls.read(7, memory, [0, 4], [4, 4], 0, 2, 1024, syscalls.NOWAIT) == 4
    assert syscalls.write(7, memory, [0], [4], 0, 1, 1536, syscalls.DSYNC) == 4
    assert seen == [(7, 512, os.RWF_NOWAIT), (7, 1024, os.RWF_NOWAIT), (7, 1536, os.RWF_DSYNC)]
