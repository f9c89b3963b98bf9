"""What ``/proc`` says of a process's mappings and descriptors, line by line."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Final, NamedTuple

from nodma.errors import Unavailable

RING: Final = "anon_inode:[io_uring]"
"""What a descriptor of an io_uring leads to, and its queues are mapped from."""

_MAP_LINE: Final = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+) *(.*)")
_RING_ENTRY: Final = re.compile(r" *\d+: (.*)")
_RING_BUFFER: Final = re.compile(r"(0x[0-9a-f]+)/(\d+)")
_OCTAL: Final = re.compile(r"\\([0-7]{3})")
_KERNEL_OWN: Final = frozenset({"[vvar]", "[vvar_vclock]", "[vsyscall]", "[uprobes]"})


class FileIdentity(NamedTuple):
    """What tells one file, memory or pipe from another: the device number (st_dev) and the inode number."""

    device: int
    inode: int

    @classmethod
    def of(cls, fd: int) -> FileIdentity:
        """Return that of an open descriptor of this process."""
        status = os.fstat(fd)
        return cls(status.st_dev, status.st_ino)


@dataclass(frozen=True, slots=True)
class MappedRange:
    """A line of /proc/PID/maps; ``start`` and ``end`` are addresses in the process."""

    start: int
    end: int
    permissions: str
    file: FileIdentity
    name: str

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start

    @property
    def shared(self) -> bool:
        """Whether what one process writes there, others see."""
        return self.permissions[3] == "s"

    @property
    def writable_shared(self) -> bool:
        """Whether the process can write there, and others see it."""
        return self.shared and self.permissions[1] == "w"

    @property
    def anonymous(self) -> bool:
        """Whether it is private memory that maps no file."""
        return not self.shared and not self.file.inode

    @property
    def kernel_own(self) -> bool:
        """Whether the kernel put it there, with nothing of the process in it."""
        return not self.file.inode and self.name in _KERNEL_OWN


@dataclass(frozen=True, slots=True)
class Ring:
    """What an io_uring holds, apart from its rings. ``listed`` is False if the kernel did not list it this time.

    ``files`` are names, as the kernel gives no more; ``buffers`` are addresses in the process, and bytes.
    """

    listed: bool
    files: tuple[str, ...]
    buffers: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Descriptor:
    """An open descriptor, and what it leads to.

    ``task`` is the first thread that has it. ``queued`` counts the descriptors that are in flight to a UNIX socket; it
    is None for anything else.
    """

    fd: int
    task: int
    target: str
    file: FileIdentity
    mode: int
    special: int
    queued: int | None = None
    ring: Ring | None = None


def is_range(line: bytes) -> bool:
    """Whether a line of /proc/PID/smaps begins a mapping."""
    return _MAP_LINE.fullmatch(line) is not None


def parse_range(line: bytes) -> MappedRange:
    """Read a line of /proc/PID/maps. Raises Unavailable if a kernel writes it in another way."""
    match = _MAP_LINE.fullmatch(line)
    if not match:
        raise Unavailable(f"/proc/PID/maps has a line that this version of nodma cannot read: {printable(line)}")
    start, end, permissions, _, major, minor, inode, name = match.groups()
    file = FileIdentity(os.makedev(int(major, 16), int(minor, 16)), int(inode))
    return MappedRange(int(start, 16), int(end, 16), permissions.decode(), file, printable(name))


def parse_ring(info: str) -> Ring:
    """Read the fdinfo of an io_uring. A kernel that finds its lock taken lists nothing, or counts without a list."""
    lists: dict[str, list[str]] = {}
    counts: dict[str, int] = {}
    current: list[str] = []
    for line in info.splitlines():
        name, colon, rest = line.partition(":")
        if (entry := _RING_ENTRY.fullmatch(line)) and name.strip().isdigit():
            current.append(_OCTAL.sub(lambda octal: chr(int(octal[1], 8)), entry[1]))
        elif colon:
            current = lists.setdefault(name, [])
            if rest.strip().isdigit():
                counts[name] = int(rest)
    files = tuple(name for name in lists.get("UserFiles", ()) if name != "<none>")
    buffers = [_RING_BUFFER.fullmatch(entry) for entry in lists.get("UserBufs", ()) if entry != "<none>"]
    listed = all(name in counts and bool(lists[name]) >= bool(counts[name]) for name in ("UserFiles", "UserBufs"))
    parsed = tuple((int(buffer[1], 16), int(buffer[2])) for buffer in buffers if buffer)
    return Ring(listed and len(parsed) == len(buffers), files, parsed)


def printable(name: bytes) -> str:
    """Return a name as text that a terminal can take, whatever bytes it has."""
    text = name.decode(errors="backslashreplace")
    return text if text.isprintable() else text.encode("unicode_escape").decode()
