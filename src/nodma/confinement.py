"""Examine a device process from outside: does it hold anything but its window?

One examination serves ``nodma demo``, ``nodma guest prove`` and the tests. What it knows to be harmless passes; all
else is a finding. docs/confinement.md says what no examination by way of ``/proc`` can find.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nodma.procfs import (
    PAGE,
    RING,
    Descriptor,
    FileIdentity,
    MappedRange,
    ProcessView,
    Unread,
    holders,
    stopped,
)

SETTLE_SECONDS: Final = 10.0
_SETTLE_STEP: Final = 0.05

_HARMLESS_ANONYMOUS: Final = frozenset({"[eventfd]", "[eventpoll]", "[timerfd]", "[signalfd]", "inotify"})
_MEMORY_NAMES: Final = ("/memfd:", "/secretmem", "/SYSV", "/dev/zero (deleted)", "/anon_hugepage", "/dmabuf:", "/drm ")
"""How files begin that are nothing but memory."""
_MEMORY_DEVICES: Final = frozenset(os.makedev(1, minor) for minor in (3, 5, 7, 8, 9))
"""/dev/null, zero, full, random, urandom: nothing can be kept in them."""
_TERMINALS: Final = frozenset({4, 5, *range(136, 144), 188, 204, 229})
"""The major numbers of terminals, pseudo terminals and serial lines."""


@dataclass(frozen=True)
class Examination:
    """What a device process and its descendants were found to hold. The lists of findings are empty if all is well."""

    processes: int
    maps: list[MappedRange]
    descriptors: list[Descriptor]
    searched: int
    unread: list[Unread]
    found: frozenset[bytes]
    memory_mapped: list[str] = field(default_factory=list)
    """Mappings of guest memory."""
    memory_open: list[str] = field(default_factory=list)
    """Descriptors of guest memory."""
    foreign: list[str] = field(default_factory=list)
    """Other memory than the window that it could share with somebody."""
    opaque: list[str] = field(default_factory=list)
    """What might hold memory, and cannot be looked into: in flight, registered, pinned, unknown or unreadable."""
    elsewhere: list[str] = field(default_factory=list)
    """Other processes that hold guest memory."""
    unanswered: list[int] = field(default_factory=list)
    """Other processes that could not be inspected in time, because they hang."""

    @property
    def findings(self) -> list[str]:
        """All of them, the gravest first."""
        return [*self.memory_mapped, *self.memory_open, *self.elsewhere, *self.foreign, *self.opaque]

    @property
    def unread_bytes(self) -> int:
        """Bytes that are mapped and cannot be read; nothing is in them, or ``opaque`` has them."""
        return sum(part.end - part.start for part in self.unread)


def examine(
    pid: int,
    *,
    window: FileIdentity,
    memory: Collection[FileIdentity],
    needles: Iterable[bytes],
    entitled: Collection[int] = (),
    settle: float = SETTLE_SECONDS,
) -> Examination:
    """Examine process ``pid`` and its descendants, stopped meanwhile. ``entitled`` may hold the memory, as a VMM does.

    A descriptor that its client has just sent is not yet closed, and one on its way not yet received: only what stays
    for ``settle`` seconds is a finding. Raises Unavailable if a process may not be inspected.
    """
    deadline = time.monotonic() + settle
    sought = [*needles]
    while True:
        with stopped(pid) as views:
            examination = _look(views, window, frozenset(memory), sought)
            family = {view.pid for view in views}
        passing = examination.memory_open or examination.opaque
        if not passing or examination.memory_mapped or time.monotonic() > deadline:
            break
        time.sleep(_SETTLE_STEP)
    elsewhere, unanswered = holders(frozenset(memory), frozenset({os.getpid(), *entitled, *family}))
    examination.elsewhere.extend(elsewhere)
    examination.unanswered.extend(unanswered)
    return examination


def _look(
    views: list[ProcessView], window: FileIdentity, memory: frozenset[FileIdentity], needles: list[bytes]
) -> Examination:
    maps: list[MappedRange] = []
    descriptors: list[Descriptor] = []
    unread: list[Unread] = []
    found: set[bytes] = set()
    searched = 0
    opaque: list[str] = []
    for view in views:
        own_maps, own_descriptors = view.maps(), view.descriptors()
        search = view.search(*needles)
        maps += own_maps
        descriptors += own_descriptors
        unread += search.unread
        found |= search.found
        searched += search.searched
        opaque += _opaque(view, own_maps, own_descriptors, window)
        opaque += [
            f"{part.end - part.start} bytes of {part.name or 'private memory'} cannot be read"
            for part in search.unread
            if part.present and part.name != RING
        ]
    examination = Examination(len(views), maps, descriptors, searched, unread, frozenset(found), opaque=opaque)
    for mapped in maps:
        if mapped.file in memory:
            examination.memory_mapped.append(f"guest memory, {mapped.name}, is mapped {mapped.permissions}")
        elif mapped.file != window and not _may_be_mapped(mapped):
            examination.foreign.append(f"{mapped.name or 'memory without a name'} is mapped {mapped.permissions}")
    for item in descriptors:
        if item.file in memory:
            examination.memory_open.append(f"guest memory, {item.target}, is open as descriptor {item.fd}")
        elif item.file != window and _is_memory(item.target):
            examination.foreign.append(f"{item.target} is open as descriptor {item.fd}")
    return examination


def _may_be_mapped(mapped: MappedRange) -> bool:
    """Whether a mapping is private memory, the kernel's own, or a file that is not written through it."""
    if mapped.anonymous or mapped.kernel_own or mapped.name == RING:
        return True
    if not mapped.name.startswith("/") or _is_memory(mapped.name):
        return False
    if mapped.name.startswith("/dev/"):
        return mapped.name == "/dev/zero" and not mapped.shared
    return not mapped.writable_shared


def _is_memory(name: str) -> bool:
    return name.startswith(_MEMORY_NAMES)


def _opaque(
    view: ProcessView, maps: list[MappedRange], descriptors: list[Descriptor], window: FileIdentity
) -> Iterator[str]:
    """Say what might hold memory unseen."""
    processes = Path("/proc").stat().st_dev
    for item in descriptors:
        if reason := _why_opaque(item, processes):
            yield f"descriptor {item.fd} is {item.target}, {reason}"
        if item.ring:
            yield from _ring(item, maps, descriptors, window)
    rings = {item.file for item in descriptors if item.ring}
    for mapped in maps:
        if mapped.name == RING and mapped.file not in rings:
            yield "an io_uring is mapped whose descriptor is not open: what is registered in it cannot be listed"
    listed = sum(_pages(*buffer) for item in descriptors if item.ring for buffer in item.ring.buffers)
    if (pinned := view.pinned()) > listed:
        yield f"the kernel keeps {pinned} bytes pinned for it, {listed} of them registered in an io_uring"


def _pages(address: int, size: int) -> int:
    """Return the bytes of the pages that hold ``size`` bytes at ``address``."""
    return -(-(address + size) // PAGE) * PAGE - address // PAGE * PAGE


def _why_opaque(item: Descriptor, processes: int) -> str:
    """Say what is unknown about a descriptor; nothing if it is known."""
    kind, _, name = item.target.partition(":")
    if item.queued:
        return f"to which {item.queued} descriptors are in flight"
    if item.file.device == processes:
        return "a file of /proc, which may lead to any process's memory"
    if kind == "socket" and item.queued is None:
        return "which is not a UNIX socket (or Linux is older than 5.6): what is queued in it is unknown"
    if kind in ("socket", "pipe") or (kind == "anon_inode" and name in _HARMLESS_ANONYMOUS) or item.ring:
        return ""
    if stat.S_ISCHR(item.mode):
        known = item.special in _MEMORY_DEVICES or os.major(item.special) in _TERMINALS
        return "" if known else "a device that is not known to be harmless"
    known = any(is_kind(item.mode) for is_kind in (stat.S_ISREG, stat.S_ISDIR, stat.S_ISBLK, stat.S_ISFIFO))
    return "" if known and kind.startswith("/") else "which is not known to be harmless"


def _ring(
    ring: Descriptor, maps: list[MappedRange], descriptors: list[Descriptor], window: FileIdentity
) -> Iterator[str]:
    """Say what an io_uring may hold besides what the process holds anyway."""
    assert ring.ring
    name = f"the io_uring of descriptor {ring.fd}"
    if not ring.ring.listed:
        yield f"{name} is busy: the kernel does not list what is registered in it"
    if not any(mapped.name == RING and mapped.file == ring.file for mapped in maps):
        yield f"{name} is not mapped: its queues lie in other memory"
    files = {item.target for item in descriptors if not _is_memory(item.target)}
    for file in ring.ring.files:
        if file not in files:
            yield f"{name} has the file {file} registered, which no descriptor identifies"
    fine = [mapped for mapped in maps if mapped.file == window or mapped.anonymous]
    for address, size in ring.ring.buffers:
        if not _covered(address, address + size, fine):
            yield f"{name} has a buffer of {size} bytes at {address:#x}, which is not in the window nor private memory"


def _covered(start: int, end: int, ranges: list[MappedRange]) -> bool:
    for mapped in ranges:  # in the order of addresses
        if mapped.start <= start < mapped.end:
            start = mapped.end
    return start >= end
