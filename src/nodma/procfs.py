"""What a process holds, seen from outside: its mappings, its descriptors, and what is in its memory.

Nothing here asks the process itself; all comes from ``/proc/PID``. Reading another process's memory takes
the right to trace it: a parent has it over its child, and root over all.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodma.errors import Unavailable, UsageError

_MAP_LINE: Final = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) (\S+) (\d+)\s*(.*)")
_PIECE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class MappedRange:
    """A line of /proc/PID/maps; ``start`` and ``end`` are addresses in the process."""

    start: int
    end: int
    permissions: str
    inode: int
    name: str

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start

    @property
    def writable_shared(self) -> bool:
        """Whether the process can write there, and others see it."""
        return self.permissions[1] == "w" and self.permissions[3] == "s"


@dataclass(frozen=True, slots=True)
class Descriptor:
    """An open descriptor and what it leads to."""

    fd: int
    target: str
    inode: int


class ProcessView:
    """Process ``pid``. Methods raise UsageError if it is gone, or may not be looked at."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._proc = Path("/proc") / str(pid)

    def maps(self) -> list[MappedRange]:
        """Give all that is mapped."""
        found = []
        for line in self._read("maps").splitlines():
            if match := _MAP_LINE.fullmatch(line):
                start, end, permissions, _, _, inode, name = match.groups()
                found.append(MappedRange(int(start, 16), int(end, 16), permissions, int(inode), name))
        return found

    def descriptors(self) -> list[Descriptor]:
        """Give all that is open."""
        found = []
        try:
            numbers = sorted(int(entry.name) for entry in (self._proc / "fd").iterdir())
        except OSError as error:
            raise self._refused(error) from error
        for fd in numbers:
            link = self._proc / "fd" / str(fd)
            try:
                found.append(Descriptor(fd, str(link.readlink()), link.stat().st_ino))
            except FileNotFoundError:
                continue  # closed meanwhile
        return found

    def resident(self) -> int:
        """Bytes of memory that the process uses, shared ones included (VmRSS)."""
        match = re.search(r"VmRSS:\s+(\d+) kB", self._read("status"))
        return int(match[1]) << 10 if match else 0

    def resident_shared(self) -> int:
        """Bytes of those that lie in shared memory (RssShmem): the window."""
        match = re.search(r"RssShmem:\s+(\d+) kB", self._read("status"))
        return int(match[1]) << 10 if match else 0

    def contains(self, needle: bytes) -> bool:
        """Search everything that the process can read for ``needle``."""
        try:
            memory = os.open(self._proc / "mem", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self._refused(error) from error
        try:
            return any(needle in piece for piece in self._pieces(memory, len(needle)))
        finally:
            os.close(memory)

    def _pieces(self, memory: int, overlap: int) -> Iterator[bytes]:
        for mapped in self.maps():
            if "r" not in mapped.permissions or mapped.name in ("[vvar]", "[vsyscall]", "[vvar_vclock]"):
                continue
            at, tail = mapped.start, b""
            while at < mapped.end:
                try:
                    piece = os.pread(memory, min(_PIECE, mapped.end - at), at)
                except OSError:  # unmapped meanwhile, or a page that nobody can read
                    break
                if not piece:
                    break
                yield tail + piece
                tail = piece[-overlap:]
                at += len(piece)

    def _read(self, name: str) -> str:
        try:
            return (self._proc / name).read_text()
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> UsageError:
        return Unavailable(f"process {self.pid} cannot be looked at: {error.strerror} (be its parent, or root)")
