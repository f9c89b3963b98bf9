"""A process seen from outside, and its descendants."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import signal
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from nodma.errors import Unavailable
from nodma.procfs.memory import Pages, Search, Unread, copy_of_pipe, read_span
from nodma.procfs.records import (
    RING,
    Descriptor,
    FileIdentity,
    MappedRange,
    is_range,
    parse_range,
    parse_ring,
    printable,
)

_SMAPS_FIELD: Final = re.compile(rb"(\w+): +(\d+) kB")
_INODE: Final = re.compile(rb"^ino:\s*(\d+)$", re.MULTILINE)
_KCMP: Final = 312 if platform.machine() == "x86_64" else 272
_KCMP_FILES: Final = 2  # linux/kcmp.h
_HOLDERS_SECONDS: Final = 10.0
_HANG_SECONDS: Final = 0.5
_STOP_SECONDS: Final = 10.0
_STOP_STEP: Final = 0.002


class ProcessView:
    """Process ``pid``. Methods raise Unavailable if it is gone, or may not be inspected."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._proc = Path("/proc") / str(pid)

    def tasks(self) -> list[int]:
        """Return the thread ids."""
        return self._numbers(self._proc / "task")

    def maps(self) -> list[MappedRange]:
        """Return all that is mapped."""
        return [parse_range(line) for line in self._read(self._memory() / "maps").split(b"\n") if line]

    def descriptors(self) -> list[Descriptor]:
        """Return all that is open in any thread; what several threads have once."""
        found: dict[tuple[int, FileIdentity, str], Descriptor] = {}
        for task in self.descriptor_tables():
            with contextlib.suppress(FileNotFoundError):  # the thread is gone
                for fd in self._numbers(self._proc / "task" / str(task) / "fd"):
                    if item := self._descriptor(task, fd):
                        found.setdefault((fd, item.file, item.target), item)
        return sorted(found.values(), key=lambda item: (item.fd, item.task))

    def resident(self) -> int:
        """Bytes of memory that the process uses, shared ones included (VmRSS)."""
        return self._status("VmRSS")

    def resident_shared(self) -> int:
        """Bytes of those that lie in shared memory (RssShmem): the window."""
        return self._status("RssShmem")

    def pinned(self) -> int:
        """Bytes that the kernel holds in place for the process, for an io_uring or a device (VmPin)."""
        return self._status("VmPin")

    def family(self) -> list[ProcessView]:
        """Return this process, its children, and theirs."""
        parents = {child: parent for child, parent in _parents() if child != parent}
        family = [self.pid]
        for pid in family:
            family += sorted(child for child, parent in parents.items() if parent == pid)
        return [ProcessView(pid) for pid in family]

    def search(self, *needles: bytes) -> Search:
        """Search all that the process has mapped, and what waits in its pipes.

        Mappings that it cannot read itself are read too. What cannot be read is skipped, and reported.
        """
        found: set[bytes] = set()
        unread: list[Unread] = []
        searched, expected, tail = 0, 0, b""
        overlap = max(len(needle) for needle in needles) - 1
        for at, piece in self._pieces(unread):
            text = tail + piece if at == expected else piece
            found.update(needle for needle in needles if needle in text)
            tail, expected = text[-overlap:] if overlap else b"", at + len(piece)
            searched += len(piece)
        for text in self._queued_in_pipes(unread):
            found.update(needle for needle in needles if needle in text)
            searched += len(text)
        return Search(frozenset(found), searched, tuple(unread))

    @property
    def alive(self) -> bool:
        """Whether it still has memory and descriptors."""
        try:
            return bool(self._memory())
        except Unavailable:
            return False

    def states(self) -> set[str]:
        """Return the states of its threads, as letters: R, S, D, T, ..."""
        states = set()
        for task in self.tasks():
            with contextlib.suppress(OSError):
                line = (self._proc / "task" / str(task) / "stat").read_bytes()
                states.add(line[line.rindex(b")") + 2 :][:1].decode())
        return states

    def descriptor_tables(self) -> list[int]:
        """Return one thread for each descriptor table; as a rule all threads have one in common."""
        tables: list[int] = []
        for task in self.tasks():
            if not any(_same_descriptors(task, other) for other in tables):
                tables.append(task)
        return tables

    def _descriptor(self, task: int, fd: int) -> Descriptor | None:
        """Return what a descriptor is; None if it was closed meanwhile."""
        own = self._proc / "task" / str(task)
        try:
            target = printable(os.fsencode((own / "fd" / str(fd)).readlink()))
            status = (own / "fd" / str(fd)).stat()
            info = (own / "fdinfo" / str(fd)).read_bytes().decode(errors="backslashreplace")
        except (FileNotFoundError, ProcessLookupError):
            return None
        except OSError as error:
            raise self._refused(error) from error
        queued = re.search(r"^scm_fds:\s*(\d+)$", info, re.MULTILINE)
        return Descriptor(
            fd,
            task,
            target,
            FileIdentity(status.st_dev, status.st_ino),
            status.st_mode,
            status.st_rdev,
            int(queued[1]) if queued else None,
            parse_ring(info) if target == RING else None,
        )

    def _pieces(self, unread: list[Unread]) -> Iterator[tuple[int, bytes]]:
        """Yield what is mapped, in the order of addresses."""
        memory = self._memory()
        try:
            with contextlib.ExitStack() as stack:
                mem, pagemap = (
                    stack.enter_context((memory / name).open("rb", buffering=0)).fileno() for name in ("mem", "pagemap")
                )
                for mapped, resident, swapped in self._ranges_and_sizes(memory):
                    if mapped.kernel_own or (mapped.anonymous and not resident and not swapped):
                        continue
                    pages = Pages(pagemap, bool(swapped))
                    spans = pages.used(mapped) if mapped.anonymous else [(mapped.start, mapped.end)]
                    for start, end in spans:
                        yield from read_span(mem, pages, mapped, start, end, unread)
        except OSError as error:
            raise self._refused(error) from error
        if unread:
            self._memory()  # raises if there is nothing to read because the process is gone

    def _ranges_and_sizes(self, memory: Path) -> Iterator[tuple[MappedRange, int, int]]:
        """Yield each mapping, and how many bytes of it are in memory and swapped out."""
        mapped, sizes = None, {b"Rss": 0, b"Swap": 0}
        for line in self._read(memory / "smaps").split(b"\n"):
            if is_range(line):
                if mapped:
                    yield mapped, sizes[b"Rss"], sizes[b"Swap"]
                mapped = parse_range(line)
            elif field := _SMAPS_FIELD.fullmatch(line):
                sizes[field[1]] = int(field[2]) << 10
        if mapped:
            yield mapped, sizes[b"Rss"], sizes[b"Swap"]

    def _queued_in_pipes(self, unread: list[Unread]) -> Iterator[bytes]:
        """Yield what waits to be read in each of the pipes, and leave it there."""
        pipes = {item.file: item for item in self.descriptors() if stat.S_ISFIFO(item.mode)}
        for item in pipes.values():
            try:
                fd = os.open(self._proc / "task" / str(item.task) / "fd" / str(item.fd), os.O_RDONLY | os.O_NONBLOCK)
            except FileNotFoundError:
                continue
            except OSError:  # another user's, inherited
                unread.append(Unread(0, 0, item.target, present=False))
                continue
            try:
                yield copy_of_pipe(fd)
            finally:
                os.close(fd)

    def _memory(self) -> Path:
        """Return the directory of a thread that has the process's memory; a leader that ended has not."""
        for task in self.tasks():
            path = self._proc / "task" / str(task)
            with contextlib.suppress(OSError):
                if (path / "statm").read_bytes().split()[0] != b"0":
                    return path
        raise Unavailable(f"process {self.pid} cannot be inspected: it has ended")

    def _status(self, field: str) -> int:
        match = re.search(rf"^{field}:\s+(\d+) kB$".encode(), self._read(self._memory() / "status"), re.MULTILINE)
        return int(match[1]) << 10 if match else 0

    def _numbers(self, directory: Path) -> list[int]:
        try:
            return sorted(int(entry.name) for entry in directory.iterdir())
        except OSError as error:
            if isinstance(error, FileNotFoundError) and self._proc.exists():
                raise
            raise self._refused(error) from error

    def _read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> Unavailable:
        return Unavailable(
            f"process {self.pid} cannot be inspected: {error.strerror}."
            " Run as root, or start it with --auditable and run as its user"
        )


@contextmanager
def stopped(pid: int) -> Iterator[list[ProcessView]]:
    """Stop a process and its descendants for as long as this is entered; yields them all.

    What is found in all of them belongs to one moment. Raises Unavailable if one cannot be stopped within 10 s.
    """
    halted: dict[int, ProcessView] = {}
    deadline = time.monotonic() + _STOP_SECONDS
    try:
        while fresh := [view for view in ProcessView(pid).family() if view.pid not in halted]:
            for view in fresh:
                halted[view.pid] = view
                _signal(view.pid, signal.SIGSTOP)
            for view in fresh:
                _wait_until_stopped(view, deadline)
        yield [view for view in halted.values() if view.alive or view.pid == pid]
    finally:
        for view in halted.values():
            with contextlib.suppress(Unavailable):
                _signal(view.pid, signal.SIGCONT)


def holders(
    files: frozenset[FileIdentity], apart_from: frozenset[int], seconds: float = _HOLDERS_SECONDS
) -> tuple[list[str], list[int]]:
    """Return who else on this machine maps or has open one of ``files``, and which processes did not answer.

    Only processes that may be inspected are. One that hangs can hang whoever reads its mappings: a thread is left with
    it, and another goes on. No file system is asked about a file that cannot be one of those meant.
    """
    found: list[str] = []
    busy: dict[threading.Thread, int] = {}
    left = iter([pid for pid in _pids() if pid not in apart_from])

    def look() -> None:
        for pid in left:
            busy[threading.current_thread()] = pid
            if how := _how_held(pid, files):
                found.append(f"process {pid} {how}")
        busy.pop(threading.current_thread(), None)

    deadline = time.monotonic() + seconds
    threads: list[threading.Thread] = []
    while time.monotonic() < deadline and (not threads or threads[-1].is_alive()):
        threads.append(threading.Thread(target=look, daemon=True))
        threads[-1].start()
        threads[-1].join(_HANG_SECONDS)
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return sorted(found), sorted(busy.values())


def _how_held(pid: int, files: frozenset[FileIdentity]) -> str:
    needles = [b" %02x:%02x %d " % (os.major(file.device), os.minor(file.device), file.inode) for file in files]
    own = Path("/proc") / str(pid)
    with contextlib.suppress(OSError, Unavailable):
        text = (own / "maps").read_bytes()
        if any(needle in text for needle in needles):
            return "maps it"
        if any(_is_open_in(own / "task" / str(task), files) for task in ProcessView(pid).descriptor_tables()):
            return "has it open"
    return ""


def _is_open_in(task: Path, files: frozenset[FileIdentity]) -> bool:
    inodes = {file.inode for file in files}
    for link in (task / "fd").iterdir():
        with contextlib.suppress(OSError):
            inode = _INODE.search((task / "fdinfo" / link.name).read_bytes())
            if inode and int(inode[1]) not in inodes:  # absent before Linux 5.14
                continue
            status = link.stat()
            if FileIdentity(status.st_dev, status.st_ino) in files:
                return True
    return False


def _same_descriptors(task: int, other: int) -> bool:
    """Whether two threads have one descriptor table; False if the kernel cannot say."""
    return bool(ctypes.CDLL(None).syscall(_KCMP, task, other, _KCMP_FILES, 0, 0) == 0)


def _pids() -> list[int]:
    return sorted(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def _parents() -> Iterator[tuple[int, int]]:
    """Yield each process, and its parent."""
    for pid in _pids():
        with contextlib.suppress(OSError):
            line = Path("/proc", str(pid), "stat").read_bytes()
            yield pid, int(line[line.rindex(b")") + 2 :].split()[1])


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
    except OSError as error:
        raise Unavailable(f"process {pid} cannot be stopped for inspection: {error.strerror}") from error


def _wait_until_stopped(view: ProcessView, deadline: float) -> None:
    while True:
        try:
            states = view.states()
        except Unavailable:
            return  # it has ended
        if states <= {"T", "t", "Z", "X"}:
            return
        if time.monotonic() > deadline:
            raise Unavailable(f"process {view.pid} did not stop within {_STOP_SECONDS:g} s; its threads are {states}")
        time.sleep(_STOP_STEP)
