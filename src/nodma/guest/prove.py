"""The proof: a guest whose memory anyone could map, and a device process that did not.

The machine's memory is a memfd that QEMU hands to every device, the worst case there is. The guest fills it with a
canary, frees half of it, uses its disk, and writes a marker as the last thing. Then both processes are inspected from
outside. The canary must be in QEMU's memory, and the marker in the device's: so the search finds what is there. The
canary must be nowhere in the device's.
"""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from nodma.confinement import Examination, examine
from nodma.errors import GuestError
from nodma.guest.job import Job
from nodma.guest.kernel import Kernel
from nodma.guest.machine import Machine, Shape
from nodma.guest.tools import Tools
from nodma.hosting.process import DeviceProcess
from nodma.procfs import Descriptor, FileIdentity, MappedRange, ProcessView
from nodma.spec.vfio_user import Region
from nodma.vfio_user import Client

SCRIPT: Final = (Path(__file__).parent / "prove.sh").read_text()
_MEMORY: Final = 512
_DISK_BYTES: Final = 192 << 20
_SECONDS: Final = 180.0

_WINDOW_NAME: Final = "/memfd:nodma-window "

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Check:
    """Something that must hold, and whether it does."""

    says: str
    holds: bool


@dataclass(frozen=True)
class Proof:
    """What was found. Sizes are bytes."""

    kernel: str
    qemu: str
    accelerator: str
    guest_memory: int
    canary_filled: int
    scanned: int
    unread: int
    unanswered: int
    maps: list[MappedRange]
    descriptors: list[Descriptor]
    report: dict[str, Any]
    counters: dict[str, int]
    checks: list[Check] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether all of it holds."""
        return all(check.holds for check in self.checks)


def prove(tools: Tools, kernel: Kernel, work: Path, *, accelerator: str, progress: Progress = lambda _: None) -> Proof:
    """Run the guest, look at the processes; ``work`` takes the disk and the logs.

    Raises GuestError if the guest or its device fail, Unavailable if a process may not be inspected.
    """
    canary, marker = secrets.token_hex(24).encode(), secrets.token_hex(24).encode()
    image, socket = work / "disk.img", work / "disk.sock"
    with image.open("wb") as file:
        file.truncate(_DISK_BYTES)
    job = Job(SCRIPT, drivers=["nodma", "virtio_blk"], files={"canary": canary, "marker": marker})
    shape = Shape(memory=_MEMORY, shared=True, accelerator=accelerator, append="init_on_alloc=0")
    progress("starting the device, and a guest with shared memory")
    with DeviceProcess(image, socket) as device:
        roms = _offered_rom(socket)
        with Machine(tools, kernel, job, functions=[socket], shape=shape, directory=work) as machine:
            filled = int(machine.console.expect(r"^FILLED (\d+)", _SECONDS)[1])
            progress("the guest's memory is full of the canary; its disk is being used")
            machine.console.expect(r"^WAITING", _SECONDS)
            progress("searching both processes' memory")
            theirs = ProcessView(machine.pid)
            memory, window = _guest_memory_and_window(theirs.maps())
            in_guest = canary in theirs.search(canary).found
            examination = examine(
                device.pid, window=window, memory=memory, needles=[canary, marker], entitled=[machine.pid]
            )
            progress("ending the guest")
            machine.console.send("go on")
            outcome = machine.finish(_SECONDS)
        report = device.stop()
    counters = {
        name.partition("/")[2]: int(value) for name, value in outcome.files.items() if name.startswith("counters/")
    }
    proof = Proof(
        kernel=kernel.release,
        qemu=".".join(map(str, tools.qemu.version)),
        accelerator=accelerator,
        guest_memory=_MEMORY << 20,
        canary_filled=filled,
        scanned=examination.searched,
        unread=examination.unread_bytes,
        unanswered=len(examination.unanswered),
        maps=examination.maps,
        descriptors=examination.descriptors,
        report=report,
        counters=counters,
    )
    proof.checks.append(Check("the canary is in the guest's memory, found by searching QEMU's", in_guest))
    roms += ["the guest has one"] * ("rom" in outcome.file("function").split())
    proof.checks.extend(_checks(examination, window, report, roms, canary=canary, marker=marker))
    return proof


def _checks(
    examination: Examination,
    window: FileIdentity,
    report: dict[str, Any],
    roms: list[str],
    *,
    canary: bytes,
    marker: bytes,
) -> list[Check]:
    mapped = any(part.file == window for part in examination.maps)
    return [
        Check(
            "the same search of the device process finds the marker that the guest wrote to its disk last",
            marker in examination.found,
        ),
        Check("the same search of the device process does not find the canary", canary not in examination.found),
        _none("no mapping of the device process is of the guest's memory", examination.memory_mapped),
        _none("no open descriptor of it is", examination.memory_open),
        _none("no other process but QEMU has the guest's memory", examination.elsewhere),
        _none(
            "all that it maps and shares is its window, which QEMU maps too",
            examination.foreign if mapped else ["it does not map the window that QEMU maps", *examination.foreign],
        ),
        _none(
            "nothing in it could hide memory: all that it holds is known, and could be read",
            examination.opaque,
        ),
        _none("it offers no option ROM, and the guest has none of it", roms),
        Check(
            f"it was given the guest's memory: {report['dma_descriptors_closed']} descriptors in"
            f" {report['dma_maps']} DMA_MAP messages, each closed at once",
            report["dma_descriptors_closed"] > 0,
        ),
        Check(
            f"of {report['requests']} requests, no address lay outside the window",
            report["requests"] > 0 and report["addresses_outside_window"] == 0,
        ),
    ]


def _none(says: str, findings: list[str]) -> Check:
    """Return a check that holds if there are no findings, and otherwise says what they are."""
    return Check("; ".join([says, *findings]), not findings)


def _guest_memory_and_window(maps: list[MappedRange]) -> tuple[set[FileIdentity], FileIdentity]:
    """Return the memory and the window that QEMU maps, of which a device process may have the latter only.

    A mapping may be in several parts. Raises GuestError if QEMU does not map the memory that it should, or not exactly
    one window.
    """
    sizes: Counter[FileIdentity] = Counter()
    windows = set()
    for mapped in maps:
        if mapped.shared and mapped.name.startswith(_WINDOW_NAME):
            windows.add(mapped.file)
        elif mapped.shared and mapped.name.startswith("/memfd:"):
            sizes[mapped.file] += mapped.size
    if max(sizes.values(), default=0) < _MEMORY << 20:
        raise GuestError(
            f"QEMU does not map {_MEMORY} MiB of shared guest memory, as its command line says: nothing can be proved"
        )
    if len(windows) != 1:
        raise GuestError(f"QEMU maps {len(windows)} windows of device processes, expected one")
    return set(sizes), windows.pop()


def _offered_rom(path: Path) -> list[str]:
    """Ask the server for the ROM that QEMU would hand to the guest's firmware."""
    with Client.connect(path) as client:
        info = client.region_info(Region.ROM)
    if info.fd is not None:
        os.close(info.fd)
    return [f"the device process offers one of {info.size} bytes"] if info.size else []
