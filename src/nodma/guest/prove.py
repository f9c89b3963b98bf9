"""The proof: a guest whose memory anyone could map, and a device process that did not.

The machine's memory is a memfd that QEMU hands to every device, the worst case there is. The guest fills it with a
canary, frees half of it, uses its disk, and writes a marker as the last thing. Then both processes are looked at from
outside. The canary must be in QEMU's memory, and the marker in the device's: so the search finds what is there. The
canary must be nowhere in the device's.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from nodma.errors import GuestError
from nodma.guest.job import Job
from nodma.guest.kernel import Kernel
from nodma.guest.machine import Machine, Shape
from nodma.guest.tools import Tools
from nodma.hosting.process import DeviceProcess
from nodma.procfs import Descriptor, MappedRange, ProcessView

SCRIPT: Final = (Path(__file__).parent / "prove.sh").read_text()
_MEMORY: Final = 512
_DISK_BYTES: Final = 192 << 20
_SECONDS: Final = 180.0

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

    Raises GuestError if the guest or its device fail, UsageError if a process may not be looked at.
    """
    canary, marker = secrets.token_hex(24), secrets.token_hex(24)
    image = work / "disk.img"
    with image.open("wb") as file:
        file.truncate(_DISK_BYTES)
    job = Job(SCRIPT, drivers=["nodma", "virtio_blk"], files={"canary": canary.encode(), "marker": marker.encode()})
    shape = Shape(memory=_MEMORY, shared=True, accelerator=accelerator, append="init_on_alloc=0")
    progress("starting the device, and a guest with shared memory")
    with (
        DeviceProcess(image, work / "disk.sock") as device,
        Machine(tools, kernel, job, functions=[work / "disk.sock"], shape=shape, directory=work) as machine,
    ):
        filled = int(machine.console.expect(r"^FILLED (\d+)", _SECONDS)[1])
        progress("the guest's memory is full of the canary; its disk is being used")
        machine.console.expect(r"^WAITING", _SECONDS)
        progress("searching both processes' memory")
        ours, theirs = ProcessView(device.pid), ProcessView(machine.pid)
        maps, descriptors = ours.maps(), ours.descriptors()
        in_guest, in_device = theirs.contains(canary.encode()), ours.contains(canary.encode())
        control = ours.contains(marker.encode())
        memory = {mapped.inode for mapped in theirs.maps() if _is_guest_memory(mapped, _MEMORY << 20)}
        progress("ending the guest")
        machine.console.send("go on")
        outcome = machine.finish(_SECONDS)
        report = device.stop()
    if not memory:
        raise GuestError("QEMU does not map the guest's memory as it was told to: there is nothing to prove")
    counters = {
        name.partition("/")[2]: int(value) for name, value in outcome.files.items() if name.startswith("counters/")
    }
    proof = Proof(
        kernel=kernel.release,
        qemu=".".join(map(str, tools.qemu.version)),
        accelerator=accelerator,
        guest_memory=_MEMORY << 20,
        canary_filled=filled,
        scanned=sum(mapped.size for mapped in maps if "r" in mapped.permissions),
        maps=maps,
        descriptors=descriptors,
        report=report,
        counters=counters,
    )
    proof.checks.extend(_checks(proof, memory, in_guest=in_guest, in_device=in_device, control=control))
    return proof


def _checks(proof: Proof, memory: set[int], *, in_guest: bool, in_device: bool, control: bool) -> list[Check]:
    shared = [mapped for mapped in proof.maps if mapped.writable_shared]
    held = [item for item in proof.descriptors if item.inode in memory]
    report = proof.report
    return [
        Check("the canary is in the guest's memory, found by searching QEMU's", in_guest),
        Check("the same search of the device process finds the marker that the guest wrote to its disk last", control),
        Check("the same search of the device process does not find the canary", not in_device),
        Check(
            "no mapping of the device process is of the guest's memory", not any(m.inode in memory for m in proof.maps)
        ),
        Check("no open descriptor of it is", not held),
        Check(
            "all that it maps and shares is its window",
            bool(shared) and all(mapped.name.startswith("/memfd:nodma-window") for mapped in shared),
        ),
        Check(
            f"the guest's memory was handed to it: {report['dma_descriptors_closed']} descriptors in"
            f" {report['dma_maps']} DMA_MAP messages, each closed at once",
            report["dma_descriptors_closed"] > 0,
        ),
        Check(
            f"of {report['requests']} requests, no address lay outside the window",
            report["requests"] > 0 and report["addresses_outside_window"] == 0,
        ),
    ]


def _is_guest_memory(mapped: MappedRange, size: int) -> bool:
    return mapped.size == size and mapped.name.startswith("/memfd:")
