"""Find a QEMU that can attach a device over vfio-user, and learn by trying what it can do here."""

from __future__ import annotations

import os
import re
import selectors
import shutil
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Final

from nodma.errors import Unavailable

PROGRAM: Final = "qemu-system-x86_64"
OLDEST: Final = (10, 1)
"""The first release with vfio-user-pci."""

FIRMWARE: Final = "qboot.rom"
"""The firmware of guests that boot a kernel straight away."""

_PROBE_SECONDS: Final = 20.0
_LIBRARIES: Final = ("usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/ceph", "usr/lib/x86_64-linux-gnu/pulseaudio")


def library_path(root: Path) -> str:
    """Where the programs of an unpacked Debian have their libraries, for its dynamic loader."""
    return ":".join(str(root / place) for place in _LIBRARIES)


def loader(root: Path) -> Path:
    """The dynamic loader of an unpacked Debian: it runs that Debian's programs on any host."""
    return root / "usr/lib64/ld-linux-x86-64.so.2"


@dataclass(frozen=True)
class Qemu:
    """A QEMU. ``command`` starts it, ``origin`` says where it was found, ``firmware`` are further directories to
    look for firmware in.
    """

    command: tuple[str, ...]
    origin: str
    firmware: tuple[Path, ...] = ()

    @classmethod
    def on_path(cls) -> Qemu | None:
        """The one on PATH, if it is new enough."""
        path = shutil.which(PROGRAM)
        if path is None:
            return None
        found = cls((path,), "PATH")
        return found if found.problem is None else None

    @classmethod
    def named(cls, path: Path) -> Qemu:
        """Return the one that the user named. Raises Unavailable if it cannot be used."""
        found = cls((str(path),), str(path))
        if found.problem:
            raise Unavailable(f"{path} cannot be used: {found.problem}")
        return found

    @classmethod
    def unpacked(cls, root: Path) -> Qemu:
        """The one in an unpacked Debian, run by its own loader."""
        program = root / "usr/bin" / PROGRAM
        command = (str(loader(root)), "--library-path", library_path(root), str(program))
        return cls(command, "the kit").with_firmware(root)

    def with_firmware(self, root: Path) -> Qemu:
        """The same, with the firmware of an unpacked Debian after its own."""
        places = (*self.firmware, root / "usr/share/qemu", root / "usr/share/seabios")
        return Qemu(self.command, self.origin, tuple(dict.fromkeys(places)))

    @cached_property
    def version(self) -> tuple[int, ...]:
        """As in (11, 1, 3); empty if it does not say."""
        match = re.search(r"version (\d+)\.(\d+)\.(\d+)", self._said("--version"))
        return tuple(int(part) for part in match.groups()) if match else ()

    @cached_property
    def problem(self) -> str | None:
        """Why it cannot be used; None if it can."""
        if not self.version:
            return f"it does not run: {self._said('--version').strip() or 'it printed nothing'}"
        shown = ".".join(map(str, self.version))
        if self.version[:2] < OLDEST:
            return f"it is {shown}, and vfio-user-pci came with {'.'.join(map(str, OLDEST))}"
        if '"vfio-user-pci"' not in self._said("-device", "help"):
            return f"it is {shown}, built without vfio-user-pci"
        return None

    def arguments(self) -> list[str]:
        """Return the command line so far: the program, and where its firmware is."""
        return [*self.command, *(word for place in self.firmware for word in ("-L", str(place)))]

    def accelerator_problem(self, accelerator: str, kernel: Path) -> str | None:
        """Why ``kvm`` or ``tcg`` cannot run guests here; None if one ran just now, from its start to its end.

        The guest is a Linux kernel without a root file system, which gives up when it looks for one. Something
        smaller would not do: there are hosts on which a guest of three instructions runs, and no Linux does.
        """
        if accelerator == "kvm" and not Path("/dev/kvm").exists():
            return "/dev/kvm does not exist"
        command = [*self.arguments(), "-machine", "q35", "-accel", accelerator, "-cpu", "max", "-m", "256"]
        command += ["-bios", FIRMWARE, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        command += ["-kernel", str(kernel), "-append", "panic=-1"]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as qemu:
            assert qemu.stderr
            try:
                said = _first_words(qemu.stderr, _PROBE_SECONDS)
                if said is None:
                    return f"Linux did not get as far as looking for its disk in {_PROBE_SECONDS:.0f} s"
                if said or qemu.wait(timeout=_PROBE_SECONDS):
                    return f"Linux did not run: {said or f'QEMU ended with {qemu.returncode}'}"
            finally:
                qemu.kill()
        return None

    def _said(self, *arguments: str) -> str:
        try:
            done = subprocess.run(
                [*self.arguments(), *arguments], capture_output=True, text=True, timeout=30, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        return done.stdout + done.stderr


def _first_words(stream: IO[bytes], seconds: float) -> str | None:
    """Wait for a program to say something on ``stream``, or to close it; None if neither happens in time."""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        if not selector.select(seconds):
            return None
    lines = os.read(stream.fileno(), 4096).decode(errors="replace").strip().splitlines()
    return lines[0] if lines else ""
