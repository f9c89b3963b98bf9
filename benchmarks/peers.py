"""Who is measured: our device process, and qemu-storage-daemon, each started here and asked for its CPU time."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.disks import NodmaDisk, VhostDisk
from benchmarks.figures import Measured
from benchmarks.front import FrontEnd, Work
from nodma.errors import NodmaError
from nodma.evidence import ProcessView
from nodma.guest.kit import Kit
from nodma.guest.qemu import library_path, loader
from nodma.process import DeviceProcess

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


@dataclass(frozen=True)
class Peer(ABC):
    """Somebody who serves a disk."""

    name: str

    @abstractmethod
    def attached(self, image: Path, directory: Path, work: Work) -> Iterator[tuple[int, FrontEnd]]:
        """Start it, attach a front end; give its process and that."""

    def measure(self, image: Path, directory: Path, work: Work, seconds: float) -> Measured:
        """Start it, warm it up, measure it, end it. Raises NodmaError if that fails."""
        with contextmanager(self.attached)(image, directory, work) as (pid, front):
            front.run(WARM_SECONDS)
            cpu = cpu_seconds(pid)
            found = front.run(seconds)
            found.device_cpu_us = (cpu_seconds(pid) - cpu) / max(1, found.done) * 1e6
            view = ProcessView(pid)
            found.beside_window = view.resident() - view.resident_shared()
        return found


@dataclass(frozen=True)
class Nodma(Peer):
    """``nodma serve blk``; ``pool`` in bytes."""

    options: tuple[str, ...] = ()
    polled_options: tuple[str, ...] = ("--poll",)
    pool: int = WINDOW
    environment: Mapping[str, str] = field(default_factory=dict)

    def attached(self, image: Path, directory: Path, work: Work) -> Iterator[tuple[int, FrontEnd]]:
        """Start it, attach a front end."""
        path = directory / "nodma.sock"
        options = ["--pool", str(self.pool), "--queues", str(work.queues), *self.options]
        options += self.polled_options if work.polled else ()
        with _environment(self.environment), DeviceProcess(image, path, *options) as process:
            with NodmaDisk(path, work) as front:
                yield process.pid, front
            report = process.stop()
        if report["device"]["errors"] or report["needs_reset"]:
            raise NodmaError(f"the benchmark's requests failed: {report}")


@dataclass(frozen=True)
class StorageDaemon(Peer):
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
        """Give its command line; it listens on a descriptor."""
        command = list(storage_daemon())
        export = f"type=vhost-user-blk,id=disk,node-name=image,addr.type=fd,addr.str={listener},writable=on"
        export += f",num-queues={queues},logical-block-size=512"
        if self.iothread is not None:
            command += ["--object", f"iothread,id=io{self.iothread}"]
            export += ",iothread=io"
        node = f"driver=file,node-name=image,filename={image},aio={self.aio},discard=unmap"
        return [*command, "--blockdev", node, "--export", export]


def storage_daemon() -> tuple[str, ...]:
    """What starts the guest kit's qemu-storage-daemon. Raises UsageError if there is no kit."""
    root = Kit.open().root
    return (str(loader(root)), "--library-path", library_path(root), str(root / "usr/bin/qemu-storage-daemon"))


@contextmanager
def _environment(more: Mapping[str, str]) -> Iterator[None]:
    """Have processes that are started meanwhile find ``more`` in their environment."""
    before = {name: os.environ.get(name) for name in more}
    os.environ.update(more)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


OURS: Final = Nodma("nodma")
INTERPRETED: Final = Nodma("nodma, interpreted", environment={"NODMA_PURE": "1"})
DAEMON: Final = StorageDaemon("qemu-storage-daemon")
DAEMON_BEST: Final = StorageDaemon("qemu-storage-daemon, io_uring + iothread", aio="io_uring", iothread="")
