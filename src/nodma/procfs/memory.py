"""Read the memory of another process, and what waits in its pipes."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import struct
import termios
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from nodma.procfs.records import MappedRange

PAGE: Final = os.sysconf("SC_PAGE_SIZE")

_PIECE: Final = 1 << 20
_PAGEMAP_ENTRY: Final = 8
_PRESENT: Final = 1 << 63
_SWAPPED: Final = 1 << 62
_GUARD: Final = 1 << 58
_PIPE_BYTES: Final = 1 << 20
_TEE_NONBLOCK: Final = 2


@dataclass(frozen=True, slots=True)
class Unread:
    """What a search could not read. ``present`` tells whether there is anything at all in it."""

    start: int
    end: int
    name: str
    present: bool


@dataclass(frozen=True, slots=True)
class Search:
    """What a search came to: the needles found, bytes searched, and what could not be read."""

    found: frozenset[bytes]
    searched: int
    unread: tuple[Unread, ...]


class Pages:
    """Which pages of a process hold something, by its pagemap.

    A guard page (MADV_GUARD_INSTALL) is marked as swapped out; before Linux 6.15 nothing else shows it than that
    nothing of its mapping is swapped out.
    """

    def __init__(self, pagemap: int, swapped: bool) -> None:
        self._pagemap = pagemap
        self._mask = _PRESENT | (_SWAPPED if swapped else 0)

    def holds(self, address: int) -> bool:
        """Whether there is anything in the page at ``address``, as far as is known."""
        raw = os.pread(self._pagemap, _PAGEMAP_ENTRY, address // PAGE * _PAGEMAP_ENTRY)
        return not raw or self._used(struct.unpack("=Q", raw)[0])

    def used(self, mapped: MappedRange) -> Iterator[tuple[int, int]]:
        """Yield the parts of private memory that were ever touched; the rest is zeros, and need not be read."""
        begin = None
        step = _PIECE // _PAGEMAP_ENTRY * PAGE
        for at in range(mapped.start, mapped.end, step):
            count = (min(step, mapped.end - at)) // PAGE
            raw = os.pread(self._pagemap, count * _PAGEMAP_ENTRY, at // PAGE * _PAGEMAP_ENTRY)
            for index, entry in enumerate(memoryview(raw).cast("Q")):
                if self._used(entry):
                    if begin is None:
                        begin = at + index * PAGE
                elif begin is not None:
                    yield begin, at + index * PAGE
                    begin = None
        if begin is not None:
            yield begin, mapped.end

    def _used(self, entry: int) -> bool:
        return bool(entry & self._mask) and not entry & _GUARD


def read_span(
    mem: int, pages: Pages, mapped: MappedRange, start: int, end: int, unread: list[Unread]
) -> Iterator[tuple[int, bytes]]:
    """Yield what is at ``start`` to ``end``; a page that cannot be read is noted, and skipped."""
    at = start
    while at < end:
        try:
            piece = os.pread(mem, min(_PIECE, end - at), at)
        except OSError:
            piece = b""
        if piece:
            yield at, piece
            at += len(piece)
            continue
        after = min(end, at - at % PAGE + PAGE)
        present = pages.holds(at)
        last = unread[-1] if unread else None
        if last and (last.end, last.name, last.present) == (at, mapped.name, present):
            unread[-1] = Unread(last.start, after, mapped.name, present)
        else:
            unread.append(Unread(at, after, mapped.name, present))
        at = after


def copy_of_pipe(fd: int) -> bytes:
    """Return what waits in a pipe, as far as a pipe of our own can be made to hold it."""
    queued = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))[0]
    if not queued:
        return b""
    reader, writer = os.pipe()
    try:
        with contextlib.suppress(OSError):
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        ctypes.CDLL(None).tee(fd, writer, ctypes.c_size_t(queued), _TEE_NONBLOCK)
    finally:
        os.close(writer)
    with os.fdopen(reader, "rb") as copy:
        return copy.read()
