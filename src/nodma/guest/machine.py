"""A virtual machine: a QEMU process with a console, a control socket, and devices attached over vfio-user."""

from __future__ import annotations

import io
import socket
import subprocess
import sys
import tarfile
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from qemu.qmp.legacy import QEMUMonitorProtocol

from nodma.errors import GuestError
from nodma.guest.command import last_lines
from nodma.guest.console import Console
from nodma.guest.job import Job
from nodma.guest.kernel import Kernel
from nodma.guest.lifetime import ends_with_us
from nodma.guest.qemu import FIRMWARE
from nodma.guest.tools import Tools
from nodma.hosting.attach import qemu_device

_END_SECONDS: Final = 20.0
_RESULTS: Final = b"NODMA-RESULTS\n"
"""What init.sh says before it hands back files."""

_SLOT: Final = 5
"""The first PCI slot for functions; QEMU's own devices come before it."""


@dataclass(frozen=True)
class Shape:
    """What a machine has. ``memory`` is MiB. ``shared`` backs its memory with a memfd that QEMU hands to devices.

    ``arguments`` go to QEMU, ``append`` to the kernel. ``firmware`` None boots without a kernel, from what is there.
    """

    memory: int = 512
    cpus: int = 1
    shared: bool = False
    reboots: bool = False
    accelerator: str = "tcg"
    append: str = ""
    arguments: Sequence[str] = ()
    firmware: str = FIRMWARE


@dataclass(frozen=True)
class Outcome:
    """What a guest handed back: its script's exit status, the files of /out, its console, how long it took."""

    status: int
    files: dict[str, bytes] = field(repr=False)
    console: str = field(repr=False)
    seconds: float

    def file(self, name: str) -> str:
        """A file of /out as text. Raises GuestError if the script did not write it."""
        if name not in self.files:
            raise GuestError(f"the script did not write /out/{name}; it wrote {', '.join(self.files) or 'nothing'}")
        return self.files[name].decode()


class Machine:
    """A machine that runs while it is entered; ``directory`` takes its logs.

    ``functions`` are sockets, each in a slot of its own; a sequence of them are the functions of one slot.

    Without a kernel, it boots what its firmware finds. Raises GuestError and UsageError as Job.initramfs does.
    """

    def __init__(
        self,
        tools: Tools,
        kernel: Kernel | None,
        job: Job | None,
        *,
        functions: Sequence[Path | Sequence[Path]] = (),
        shape: Shape = Shape(),
        directory: Path,
    ) -> None:
        self._directory = directory
        self._slowness = kernel.slowness if kernel else 1.0
        self.command = _command(tools, kernel, job, functions, shape, directory)

    def __enter__(self) -> Self:
        """Start QEMU."""
        ends = {name: socket.socketpair() for name in ("console", "results", "control")}
        theirs = {name: pair[1] for name, pair in ends.items()}
        command = [*self.command, *_channels({name: sock.fileno() for name, sock in theirs.items()})]
        self._errors = self._directory / "qemu.log"
        self._begin = time.monotonic()
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                pass_fds=[sock.fileno() for sock in theirs.values()],
                preexec_fn=ends_with_us(),
            )
        for sock in theirs.values():
            sock.close()
        self.pid = self._process.pid
        self.console = Console(ends["console"][0], self._directory / "console.log", self._slowness)
        self._results = Console(ends["results"][0], self._directory / "results.tar")
        self._control_socket = ends["control"][0]
        self._control: QEMUMonitorProtocol | None = None
        return self

    def __exit__(self, *_: object) -> None:
        """End QEMU, whatever it does."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._control:
            with suppress(EOFError, OSError):  # QEMU is gone, and its end of the connection with it
                self._control.close()
        self._control_socket.close()
        self.console.close()
        self._results.close()

    def control(self, command: str, **arguments: Any) -> Any:
        """Send QEMU a command (QMP) and return its answer. Raises GuestError if it refuses."""
        if self._control is None:
            self._control = QEMUMonitorProtocol(self._control_socket)
            self._control.connect(negotiate=True)
        answer = self._control.cmd_raw(command, arguments)
        if "error" in answer:
            raise GuestError(f"QEMU refused {command}: {answer['error']['desc']}")
        return answer["return"]

    def expect_event(self, name: str, seconds: float) -> None:
        """Wait until QEMU reports an event, as SUSPEND. Raises GuestError if it takes longer."""
        deadline = time.monotonic() + seconds * self._slowness
        self.control("query-status")  # connects
        assert self._control
        while (left := deadline - time.monotonic()) > 0:
            with suppress(TimeoutError):
                event = self._control.pull_event(wait=left)
                if event and event["event"] == name:
                    return
        raise GuestError(f"QEMU did not report {name} in time; {self.console.tail()}")

    def wait(self, seconds: float) -> None:
        """Wait until the guest has powered off. Raises GuestError, with its last words, if it does not."""
        seconds *= self._slowness
        try:
            status = self._process.wait(timeout=seconds)
        except subprocess.TimeoutExpired as error:
            raise GuestError(f"the guest did not end in {seconds:.0f} s; {self.console.tail()}") from error
        if status:
            raise GuestError(f"QEMU ended with {status}: {last_lines(self._errors.read_text())}")
        self.console.close()
        self._results.close()

    def finish(self, seconds: float) -> Outcome:
        """Wait until the script is done and the guest off; return what it handed back. Raises GuestError."""
        self.wait(seconds)
        took = time.monotonic() - self._begin
        files = self._files()
        return Outcome(int(files.pop("status")), files, self.console.text, took)

    def kill(self) -> None:
        """Pull the plug."""
        self._process.kill()
        self._process.wait()

    def _files(self) -> dict[str, bytes]:
        _, begun, archive = self._results.raw.partition(_RESULTS)
        if not begun:
            raise GuestError(f"the guest ended before its script did; {self.console.tail()}")
        found = {}
        try:
            with tarfile.open(fileobj=io.BytesIO(archive)) as files:
                for member in files:
                    if member.isfile() and (content := files.extractfile(member)):
                        found[member.name.removeprefix("./")] = content.read()
        except tarfile.ReadError as error:
            raise GuestError(
                f"the guest did not hand back all of its files ({error}); {self.console.tail()}"
            ) from error
        return found


def run_shell(tools: Tools, kernel: Kernel, job: Job, functions: Sequence[Path], shape: Shape, directory: Path) -> int:
    """Run a machine with its console on this terminal until it ends; return QEMU's exit status."""
    command = _command(tools, kernel, job, functions, shape, directory)
    with _terminal_as_it_is(), subprocess.Popen([*command, "-serial", "mon:stdio"], preexec_fn=ends_with_us()) as qemu:
        try:
            return qemu.wait()
        finally:
            qemu.kill()


@contextmanager
def _terminal_as_it_is() -> Iterator[None]:
    """Restore the terminal: QEMU makes it raw, and cannot undo that if it is killed."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _command(
    tools: Tools,
    kernel: Kernel | None,
    job: Job | None,
    functions: Sequence[Path | Sequence[Path]],
    shape: Shape,
    directory: Path,
) -> list[str]:
    """Write the initramfs, and return QEMU's command line, but for the serial ports."""
    initramfs = directory / "initramfs"
    machine = "q35"
    command = tools.qemu.arguments()
    if shape.shared:
        command += ["-object", f"memory-backend-memfd,id=ram,size={shape.memory}M,share=on"]
        machine += ",memory-backend=ram"
    command += ["-machine", machine, "-accel", shape.accelerator, "-cpu", "max", "-m", f"{shape.memory}M"]
    command += ["-smp", str(shape.cpus), "-bios", shape.firmware, "-nodefaults", "-no-user-config", "-display", "none"]
    if not shape.reboots:
        command.append("-no-reboot")
    if kernel:
        append = " ".join(filter(None, ("console=ttyS0 panic=-1 oops=panic", kernel.append, shape.append)))
        command += ["-kernel", str(kernel.image), "-append", append]
        if job:
            job.initramfs(initramfs, kernel, tools)
            command += ["-initrd", str(initramfs)]
    command += _devices(functions)
    return [*command, *shape.arguments]


def _devices(functions: Sequence[Path | Sequence[Path]]) -> list[str]:
    """The arguments for functions that are served over vfio-user: f0, f1 and so on, whatever their slot."""
    words: list[str] = []
    for slot, those in enumerate(functions, _SLOT):
        paths = [those] if isinstance(those, Path) else those
        several: dict[str, str | bool] = {"multifunction": True} if len(paths) > 1 else {}
        for number, path in enumerate(paths):
            name = f"f{len(words) // 2}"
            words += ["-device", qemu_device(str(path), id=name, addr=f"{slot:x}.{number}", **several)]
    return words


def _channels(descriptors: dict[str, int]) -> list[str]:
    """The arguments for two serial ports and the control socket."""
    words = []
    for name, descriptor in descriptors.items():
        words += ["-chardev", f"socket,id={name},fd={descriptor}"]
    return [*words, "-serial", "chardev:console", "-serial", "chardev:results", "-mon", "chardev=control,mode=control"]
