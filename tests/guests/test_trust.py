"""What the kernel module does not believe, and what it does not touch; what a device gets to see."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from nodma.device import BlockDevice
from nodma.device.image import Image
from nodma.function import PciFunction
from nodma.function.presence import make_capabilities
from nodma.guest import Job, Kernel, Machine, Shape
from nodma.ring import Request
from nodma.spec.pci import Capability, MsixCapability
from nodma.spec.virtio_pci import CfgType, SharedSwiotlbCap, VirtioPciCap

pytestmark = pytest.mark.timeout(240)
POOL = 1 << 20
PAGE = 4096


Lie = Callable[[list[Capability], VirtioPciCap], None]


class Liar(PciFunction):
    """A block function that says of its region what it was told to."""

    def __init__(self, image: Path, lie: Lie, **more: Any) -> None:
        def told(*given: Any) -> list[Capability]:
            made = make_capabilities(*given)
            lie(made, made[-1])  # the region's is the last
            return made

        with mock.patch("nodma.function.function.make_capabilities", told):
            super().__init__(BlockDevice(Image(image), pool=POOL), pool=POOL, **more)


def claim(**values: int) -> Lie:
    """A lie that changes fields of capability 10."""

    def lie(_: list[Capability], cap: VirtioPciCap) -> None:
        for name, value in values.items():
            setattr(cap, name, value)

    return lie


def over_another(made: list[Capability], cap: VirtioPciCap) -> None:
    """The device configuration lies in the region."""
    (device,) = (one for one in made if isinstance(one, VirtioPciCap) and one.cfg_type == CfgType.DEVICE)
    device.bar, device.offset = cap.bar, PAGE


def over_msix(made: list[Capability], cap: VirtioPciCap) -> None:
    """The MSI-X pending bits lie in the region."""
    (msix,) = (one for one in made if isinstance(one, MsixCapability))
    msix.pba = PAGE | cap.bar


def somebody_elses(made: list[Capability], cap: VirtioPciCap) -> None:
    """The region of another device."""
    shared = SharedSwiotlbCap.new(
        cap_id=cap.cap_id,
        cap_len=SharedSwiotlbCap.size,
        cfg_type=cap.cfg_type,
        bar=cap.bar,
        offset=cap.offset,
        length=cap.length,
        device=3,
        function=1,
    )
    made[made.index(cap)] = shared


LIES = {
    "names BAR 7, and there are 6": claim(bar=7),
    "names BAR 4, which is not memory": claim(bar=4),
    "ends at 0x200000 of BAR 2, which ends at 0x100000": claim(length=2 * POOL),
    "ends at 0x1ffffe000 of BAR 2, which ends at 0x100000": claim(offset=0xFFFFF000, length=0xFFFFF000),
    "has 0 bytes, less than 65536": claim(length=0),
    "begins at 0x800, not on a page": claim(offset=0x800, length=POOL // 2),
    "has 12 bytes, less than 16": claim(cap_len=12),
    "lies over the MSI-X pending bits": over_msix,
    "lies over the structure of type 4": over_another,
    "names the region of 03.1, and there is no such function": somebody_elses,
}


def test_capabilities_that_lie_are_refused_with_a_reason(lab: Any, kernel: Kernel) -> None:
    job = Job((lab.scenarios / "liars.sh").read_text(), drivers=["nodma", "virtio_blk"])
    lies = [*LIES.values(), claim()]
    sockets = [lab.directory / f"{number}.sock" for number in range(len(lies))]
    with ExitStack() as stack:
        for lie, path in zip(lies, sockets, strict=True):
            stack.enter_context(lab.serving(Liar(lab.image(path.stem, 8 << 20), lie), path))
        machine = Machine(lab.kit.tools, kernel, job, functions=sockets, directory=lab.directory)
        stack.enter_context(machine)
        outcome = machine.finish(60)
    refusals = [line.partition(" capability 10 ")[2] for line in outcome.file("refusals").splitlines()]
    assert refusals == list(LIES)
    assert outcome.file("attached").split() == [f"0000:00:{5 + len(LIES):02x}.0"]
    assert int(outcome.file("refused")) == len(LIES)
    assert outcome.status == 0  # the honest one is a disk


class Spy(BlockDevice):
    """A disk that looks into the buffers that it is to fill, before it fills them."""

    seen = 0
    dirty = 0

    def requests(self, request: Request) -> None:
        for view in request.writable:
            self.seen += len(view)
            self.dirty += len(view) - bytes(view).count(0)
        super().requests(request)


def test_the_device_is_not_shown_what_was_in_a_buffer_before(lab: Any, kernel: Kernel) -> None:
    """The disk is full of ones, and dd reads all of it into one buffer: each read finds the ones of the last there."""
    image = lab.image(size=32 << 20)
    image.write_bytes(b"\xff" * (32 << 20))
    spy = Spy(Image(image), pool=POOL)
    script = "for size in 512 4k 64k 1M; do dd if=/dev/vda of=/dev/null bs=$size count=1000 iflag=direct; done"
    job = Job(script, drivers=["nodma", "virtio_blk"])
    with (
        lab.serving(PciFunction(spy, pool=POOL), lab.socket(image)),
        lab.machine(kernel, job, [image]) as machine,
    ):
        assert machine.finish(90).status == 0
    assert spy.seen > 64 << 20
    assert spy.dirty == 0


def test_a_device_that_a_virtual_iommu_translates_is_refused(lab: Any, newest: Kernel) -> None:
    image = lab.image()
    shape = Shape(arguments=["-device", "intel-iommu,caching-mode=on"], append="intel_iommu=on iommu.passthrough=0")
    job = Job(
        "dmesg | grep -E 'nodma|device refuses' >/out/dmesg; ls /sys/kernel/iommu_groups >/out/groups",
        drivers=["nodma", "virtio_blk"],
    )
    with lab.serve(image) as device, lab.machine(newest, job, [image], shape) as machine:
        outcome = machine.finish(60)
        report = device.stop()
    assert outcome.file("groups").split()
    assert "a virtual IOMMU translates this device's addresses" in outcome.file("dmesg")
    assert "device refuses features" in outcome.file("dmesg")
    assert report["addresses_outside_window"] == 0
