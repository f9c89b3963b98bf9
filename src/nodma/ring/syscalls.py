"""The system calls of a queue's engine, for the interpreted run.

Compiled, the same names come from ``syscalls.pxd``, where they neither need Python's lock nor make an object. Each
returns a result of zero or more, or an errno as a negative number; none raises. None is called with an
address: memory is named by offsets and lengths in the window that were checked where they entered.
"""

from __future__ import annotations

import errno
import os
import select
import time

EAGAIN = errno.EAGAIN
EINTR = errno.EINTR
EINVAL = errno.EINVAL
EIO = errno.EIO
EOPNOTSUPP = errno.EOPNOTSUPP
NOWAIT = os.RWF_NOWAIT
DSYNC = os.RWF_DSYNC
IOV_MAX = 1024
_NUMBER_BYTES = 4


def read(
    fd: int, memory: memoryview, offsets: list[int], lengths: list[int], first: int, count: int, at: int, flags: int
) -> int:
    """Fill parts ``first`` to ``first + count`` of the memory from ``at`` of a file; the bytes that it took."""
    try:
        if count == 1:  # as it nearly always is
            offset = offsets[first]
            return os.preadv(fd, (memory[offset : offset + lengths[first]],), at, flags)
        return os.preadv(fd, _views(memory, offsets, lengths, first, count), at, flags)
    except OSError as error:
        return -(error.errno or EIO)


def write(
    fd: int, memory: memoryview, offsets: list[int], lengths: list[int], first: int, count: int, at: int, flags: int
) -> int:
    """Write the parts to ``at`` of a file; the bytes that it took."""
    try:
        return os.pwritev(fd, _views(memory, offsets, lengths, first, count), at, flags)
    except OSError as error:
        return -(error.errno or EIO)


def _views(memory: memoryview, offsets: list[int], lengths: list[int], first: int, count: int) -> list[memoryview]:
    return [memory[offsets[part] : offsets[part] + lengths[part]] for part in range(first, first + min(count, IOV_MAX))]


def size(fd: int) -> int:
    """Return how many bytes a file or a block device has now."""
    try:
        return os.lseek(fd, 0, os.SEEK_END)
    except OSError as error:
        return -(error.errno or EIO)


def signal(fd: int) -> int:
    """Add one to an eventfd."""
    try:
        os.eventfd_write(fd, 1)
    except OSError as error:
        return -(error.errno or EIO)
    return 0


def post(fd: int, number: int) -> int:
    """Write a number to a pipe."""
    try:
        return os.write(fd, number.to_bytes(_NUMBER_BYTES, "little"))
    except OSError as error:
        return -(error.errno or EIO)


def take(fd: int) -> int:
    """Read a number from a pipe: it, or an errno as a negative number; EIO at its end."""
    try:
        raw = os.read(fd, _NUMBER_BYTES)
    except OSError as error:
        return -(error.errno or EIO)
    return int.from_bytes(raw, "little") if raw else -EIO


def wait(epoll: select.epoll, milliseconds: int) -> int:
    """Wait until a descriptor of an epoll has news."""
    return len(epoll.poll(milliseconds / 1000 if milliseconds >= 0 else None))


def handle(epoll: select.epoll) -> select.epoll:
    """Return what :func:`wait` takes for an epoll."""
    return epoll


def now() -> int:
    """Return the nanoseconds of a monotonic clock."""
    return time.monotonic_ns()


def relax() -> None:
    """Pause for an instant, in a loop that waits for memory to change. Other threads of Python's get their turn."""
    time.sleep(0)


def give_way() -> None:
    """Let another thread or process have the core, if one waits for it."""
    os.sched_yield()
