"""Who is measured: our device process, and qemu-storage-daemon, each started here and asked for its CPU time."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.disks import BareDisk, NodmaDisk, VhostDisk
from benchmarks.figures import Measured
from benchmarks.front import FrontEnd, Work
from nodma.errors import NodmaError
from nodma.guest.kit import Kit
from nodma.guest.qemu import library_path, loader
from nodma.hosting.process import DeviceProcess
from nodma.procfs import ProcessView

WINDOW: Final = 64 << 20
"""Bytes of the window that everybody gets."""
WARM_SECONDS: Final = 0.1

_STOP_SECONDS: Final = 20.0


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, its threads that ended included, by the scheduler's clock (clock_getcpuclockid(3))."""
    libc = ctypes.CDLL(None, use_errno=True)
    clock = ctypes.c_int()
    if error := libc.clock_getcpuclockid(pid, ctypes.byref(clock)):
        raise NodmaError(f"process {pid} has no CPU clock: {os.strerror(error)}")
    return time.clock_gettime(clock.value)


def waited_seconds(pid: int) -> float:
    """How long the threads of a process, those that ended left out, were ready to run and had no core."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # it ended meanwhile
            total += int((task / "schedstat").read_text().split()[1])
    return total / 1e9


@dataclass(frozen=True)
class Peer(ABC):
    """Somebody who moves data between a disk image and a window."""

    name: str

    @abstractmethod
    def measure(self, image: Path, directory: Path, work: Work, seconds: float) -> Measured:
        """Start it, warm it up, measure it, end it; ``directory`` takes its socket. Raises NodmaError if that fails."""


@dataclass(frozen=True)
class Server(Peer):
    """A process that serves a disk."""

    @abstractmethod
    def attached(self, image: Path, directory: Path, work: Work) -> Iterator[tuple[int, FrontEnd]]:
        """Start it, attach a front end; give its process and that."""

    def measure(self, image: Path, directory: Path, work: Work, seconds: float) -> Measured:
        """Measure it through a front end."""
        with contextmanager(self.attached)(image, directory, work) as (pid, front):
            front.run(WARM_SECONDS)
            cpu, waited = cpu_seconds(pid), waited_seconds(pid)
            found = front.run(seconds)
            found.device_cpu_us = (cpu_seconds(pid) - cpu) / max(1, found.done) * 1e6
            found.waited = max(0.0, waited_seconds(pid) - waited) / seconds
            view = ProcessView(pid)
            found.beside_window = view.resident() - view.resident_shared()
        return found


@dataclass(frozen=True)
class Nodma(Server):
    """``nodma serve blk``; ``pool`` in bytes."""

    options: tuple[str, ...] = ()
    pool: int = WINDOW
    interpreted: bool = False

    def attached(self, image: Path, directory: Path, work: Work) -> Iterator[tuple[int, FrontEnd]]:
        """Start it, attach a front end."""
        path = directory / "nodma.sock"
        options = ["--pool", str(self.pool), "--queues", str(work.queues), *self.options]
        options += ["--poll"] if work.polled else []
        with pure_python(self.interpreted), DeviceProcess(image, path, *options) as process:
            with NodmaDisk(path, work) as front:
                yield process.pid, front
            report = process.stop()
        if report["device"]["errors"] or report["needs_reset"]:
            raise NodmaError(f"the benchmark's requests failed: {report}")


@dataclass(frozen=True)
class StorageDaemon(Server):
    """qemu-storage-daemon, its disk exported over vhost-user. ``iothread`` are its options, None for no iothread."""

    aio: str = "threads"
    iothread: str | None = None

    def attached(self, image: Path, directory: Path, work: Work) -> Iterator[tuple[int, FrontEnd]]:
        """Start it, attach a front end."""
        path = directory / "daemon.sock"
        with self.running(image, path, queues=work.queues) as pid, VhostDisk(path, work, window=WINDOW) as front:
            yield pid, front

    @contextmanager
    def running(self, image: Path, path: Path, *, queues: int = 1) -> Iterator[int]:
        """Have it serve ``image`` at the socket ``path``; give its process."""
        path.unlink(missing_ok=True)
        log = path.with_suffix(".log")
        with socket.socket(socket.AF_UNIX) as listener, log.open("wb") as errors:
            listener.bind(str(path))
            listener.listen()
            command = self.command(image, listener.fileno(), queues)
            process = subprocess.Popen(command, stdout=errors, stderr=errors, pass_fds=[listener.fileno()])
        try:
            yield process.pid
            if process.poll() is not None:
                raise NodmaError(f"qemu-storage-daemon ended with {process.returncode}: {log.read_text().strip()}")
        except NodmaError as error:
            raise NodmaError(f"{error}; qemu-storage-daemon said: {log.read_text().strip() or 'nothing'}") from error
        finally:
            process.terminate()
            process.wait(_STOP_SECONDS)

    def command(self, image: Path, listener: int, queues: int) -> list[str]:
        """Return its command line; it listens on a descriptor."""
        command = list(storage_daemon())
        export = f"type=vhost-user-blk,id=disk,node-name=image,addr.type=fd,addr.str={listener},writable=on"
        export += f",num-queues={queues},logical-block-size=512"
        if self.iothread is not None:
            command += ["--object", f"iothread,id=io{self.iothread}"]
            export += ",iothread=io"
        node = f"driver=file,node-name=image,filename={image},aio={self.aio},discard=unmap"
        return [*command, "--blockdev", node, "--export", export]


@dataclass(frozen=True)
class Bare(Peer):
    """No device at all: a loop in C that does the same system calls into the same buffers."""

    def measure(self, image: Path, directory: Path, work: Work, seconds: float) -> Measured:
        """Measure the loop; its CPU time is what a device would take."""
        del directory  # it has no socket
        descriptor = os.open(image, os.O_RDWR | os.O_CLOEXEC)
        try:
            with BareDisk(image.stat().st_size, work, window=WINDOW) as front:
                front.run_bare(descriptor, WARM_SECONDS)
                found = front.run_bare(descriptor, seconds)
        finally:
            os.close(descriptor)
        found.device_cpu_us, found.front_cpu_us = found.front_cpu_us, 0.0
        return found


def storage_daemon() -> tuple[str, ...]:
    """What starts the guest kit's qemu-storage-daemon. Raises UsageError if there is no kit."""
    root = Kit.open().root
    return (str(loader(root)), "--library-path", library_path(root), str(root / "usr/bin/qemu-storage-daemon"))


@contextmanager
def pure_python(interpreted: bool) -> Iterator[None]:
    """Have device processes that are started meanwhile run interpreted, or not."""
    before = os.environ.get("NODMA_PURE")
    os.environ["NODMA_PURE"] = str(int(interpreted))
    try:
        yield
    finally:
        if before is None:
            del os.environ["NODMA_PURE"]
        else:
            os.environ["NODMA_PURE"] = before


OURS: Final = Nodma("nodma")
INTERPRETED: Final = Nodma("nodma, interpreted", interpreted=True)
DAEMON: Final = StorageDaemon("daemon")
DAEMON_BEST: Final = StorageDaemon("daemon, best", aio="io_uring", iothread="")
BARE: Final = Bare("bare C")
