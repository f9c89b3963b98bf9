"""Syncing an image: in one place, one at a time, a failure never forgotten, and nobody kept by a disk that hangs."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nodma.device.image import Image
from nodma.device.image_sync import Syncer

SECONDS = 10.0


class Disk:
    """Takes the place of os.fdatasync: counts, fails, hangs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fds: list[int] = []
        self.running = self.most_at_once = 0
        self.error = 0
        self.answers = threading.Event()
        self.answers.set()
        self.reached = threading.Semaphore(0)
        monkeypatch.setattr(os, "fdatasync", self.sync)

    def sync(self, fd: int) -> None:
        self.fds.append(fd)
        self.running += 1
        self.most_at_once = max(self.most_at_once, self.running)
        self.reached.release()
        self.answers.wait(SECONDS)
        self.running -= 1
        if self.error:
            raise OSError(self.error, os.strerror(self.error))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    made = Disk(monkeypatch)
    yield made
    made.answers.set()


@pytest.fixture
def opened(image: Path, disk: Disk) -> Iterator[Image]:
    with Image(image) as made:
        yield made
        disk.answers.set()


def test_a_failure_is_remembered_by_all_that_come_after(opened: Image, disk: Disk) -> None:
    disk.error = errno.EIO
    opened.begin_sync()  # as when a client leaves: nobody waits for it
    disk.error = errno.EIO
    assert disk.reached.acquire(timeout=SECONDS)
    with pytest.raises(OSError, match="Input/output error"):
        opened.sync()
    assert opened.lost[0]
    disk.error = 0
    for _ in range(3):
        with pytest.raises(OSError, match="Input/output error") as caught:
            opened.sync()
        assert caught.value.errno == errno.EIO


def test_there_is_one_sync_at_a_time_and_those_that_wait_share_the_next(opened: Image, disk: Disk) -> None:
    disk.answers.clear()
    threads = [threading.Thread(target=opened.sync) for _ in range(8)]
    threads[0].start()
    assert disk.reached.acquire(timeout=SECONDS)
    for thread in threads[1:]:
        thread.start()
    while opened._syncer._asked < 8:
        time.sleep(0.001)
    disk.answers.set()
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive()
    assert (len(disk.fds), disk.most_at_once) == (2, 1)


def test_a_sync_under_way_does_not_count_for_what_is_written_meanwhile(opened: Image, disk: Disk) -> None:
    disk.answers.clear()
    first = opened._syncer.begin()
    assert disk.reached.acquire(timeout=SECONDS)
    second = opened._syncer.begin()
    disk.answers.set()
    opened._syncer.wait(first, lambda: False)
    opened._syncer.wait(second, lambda: False)
    assert len(disk.fds) == 2


def test_nobody_else_syncs_the_descriptor(opened: Image, disk: Disk) -> None:
    """Each open file description is told of a failure once; data are written through others."""
    opened.sync()
    assert set(disk.fds).isdisjoint({opened.fd, opened.buffered_fd})


def test_who_waits_can_give_up(opened: Image, disk: Disk) -> None:
    disk.answers.clear()
    given_up = threading.Event()
    threading.Timer(0.1, given_up.set).start()
    with pytest.raises(OSError, match="was abandoned") as caught:
        opened.sync(given_up.is_set)
    assert caught.value.errno == errno.ECANCELED
    disk.answers.set()
    opened.sync()  # it was no failure


def test_closing_waits_for_what_was_asked_for_and_not_for_ever(
    image: Path, disk: Disk, count_descriptors: Callable[[], int]
) -> None:
    before = count_descriptors()
    opened = Image(image)
    disk.answers.clear()
    assert not opened.close(0.1)
    disk.answers.set()
    thread = opened._syncer._thread
    assert thread
    thread.join(SECONDS)
    assert count_descriptors() == before
    assert disk.fds


def test_closing_syncs(image: Path, disk: Disk) -> None:
    Image(image).close()
    assert len(disk.fds) == 1
    Image(image, read_only=True).close()
    assert len(disk.fds) == 1


def test_without_a_thread_it_is_said_that_it_was_not_synced(
    image: Path, monkeypatch: pytest.MonkeyPatch, count_descriptors: Callable[[], int]
) -> None:
    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    before = count_descriptors()
    opened = Image(image)
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    with pytest.raises(RuntimeError):
        opened.sync()
    assert not opened.close()
    assert count_descriptors() == before


def test_a_file_system_that_fails_when_it_is_closed_ends_nobody(tmp_path: Path, disk: Disk) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    fd = os.open(path, os.O_RDWR)
    other = os.open(path, os.O_RDWR)
    os.close(other)  # EBADF from here on
    assert Syncer(fd, "file").close([other, fd], time.monotonic() + SECONDS)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert not disk.fds
