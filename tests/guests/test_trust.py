"""What the kernel module does not believe, and what it does not touch; what a device gets to see."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from nodma.device import BlockDevice, Device, Queue
from nodma.device.image import Image
from nodma.guest import Job, Kernel, Machine
from nodma.pci_function import PciFunction, PoolKeeper, SharedPoolConfig
from nodma.pci_function.capabilities import make_capabilities
from nodma.ring import Request
from nodma.spec.pci import Capability, MsixCapability
from nodma.spec.profiles import DMB
from nodma.spec.virtio import DeviceType
from nodma.spec.virtio_blk import SECTOR, BlkConfig, BlkStatus
from nodma.spec.virtio_pci import CfgType, CommonCfg, VirtioPciCap

pytestmark = pytest.mark.timeout(900)
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

        with mock.patch("nodma.pci_function.function.make_capabilities", told):
            super().__init__(BlockDevice(Image(image), pool=POOL), pool=POOL, **more)


def claim(**values: int) -> Lie:
    """A lie that changes fields of the region's capability."""

    def lie(_: list[Capability], cap: VirtioPciCap) -> None:
        for name, value in values.items():
            setattr(cap, name, value)

    return lie


def over_another(made: list[Capability], cap: VirtioPciCap) -> None:
    """The device configuration lies in the region."""
    device = the(CfgType.DEVICE, made)
    device.bar, device.offset = cap.bar, PAGE


def over_msix(made: list[Capability], cap: VirtioPciCap) -> None:
    """The MSI-X pending bits lie in the region."""
    (msix,) = (one for one in made if isinstance(one, MsixCapability))
    msix.pba = PAGE | cap.bar


def twice(made: list[Capability], cap: VirtioPciCap) -> None:
    """A second capability says something else; there is room for it without the device configuration's."""
    made.remove(the(CfgType.DEVICE, made))
    other = type(cap)(bytearray(bytes(cap)))
    other.length = POOL // 2
    made.append(other)


def short_common(made: list[Capability], _: VirtioPciCap) -> None:
    """The common configuration ends before dmb_shm_id."""
    the(CfgType.COMMON, made).length = CommonCfg.size


def the(kind: CfgType, made: list[Capability]) -> VirtioPciCap:
    (found,) = (one for one in made if isinstance(one, VirtioPciCap) and one.cfg_type == kind)
    return found


OWN_LIES: dict[str, Lie] = {
    "capability 10 names BAR 7, and there are 6": claim(bar=7),
    "capability 10 names BAR 4, which is not a memory BAR": claim(bar=4),
    "capability 10 ends at 0x200000 of BAR 2, which ends at 0x100000": claim(length=2 * POOL),
    "capability 10 ends at 0x1ffffe000 of BAR 2, which ends at 0x100000": claim(offset=0xFFFFF000, length=0xFFFFF000),
    "capability 10 is of 0 bytes, fewer than 65536": claim(length=0),
    "capability 10 begins at 0x800, which is not page-aligned": claim(offset=0x800, length=POOL // 2),
    "capability 10 is 12 bytes long, shorter than 16": claim(cap_len=12),
    "capability 10 lies over the MSI-X pending bits": over_msix,
    "capability 10 lies over the structure of type 4": over_another,
    "capability 10 is there more than once, with different contents": twice,
}
"""Of functions in slots 5 to 14."""

DMB_LIES: dict[str, Lie] = {
    "capability 8 with the id 0xdb is not there": claim(id=1),
    "capability 8 is not identified: the common configuration has no aligned dmb_shm_id": short_common,
    "capability 8 ends at 0x100001000 of BAR 2, which ends at 0x100000": claim(length=PAGE, length_hi=1),
    "capability 8 ends at 0xffffffffffffffff of BAR 2, which ends at 0x100000": claim(
        offset_hi=1, length_hi=0xFFFFFFFF
    ),
    "capability 8 is 16 bytes long, shorter than 24": claim(cap_len=16),
    "capability 8 is there more than once, with different contents": twice,
}
"""Of functions 1 to 6 of slot 15; an honest one is before them."""

HONEST = claim()
SLOT_15 = (HONEST, *DMB_LIES.values())

NOWHERE = 0x1E
SLOT_16: dict[str, tuple[int | None, Lie]] = {
    "an honest owner": (None, HONEST),
    "an honest sharer": (0, HONEST),
    f"capability 10 names the region of {NOWHERE:02x}.0, and there is no such function": (
        0,
        claim(device=NOWHERE, function=0),
    ),
    "capability 10 names the region of 0000:00:10.1, which has none itself: it names that of ff.0": (1, HONEST),
    "capability 10 names the region of 0000:00:10.5, which has none itself: it names that of 10.4": (
        5,
        claim(device=16),
    ),
    "capability 10 names the region of 0000:00:10.4, which has none itself: it names that of 10.5": (
        4,
        claim(device=16),
    ),
    "capability 10 names the region of 0000:00:10.0, which has 0x100000 bytes at 0x0 of BAR 2, not 0x80000 at 0x80000"
    " of BAR 2": (0, claim(offset=POOL // 2, length=POOL // 2)),
    "capability 10 names BAR 2, which is not a memory BAR": (7, HONEST),
}
"""Of functions 0 to 7 of slot 16, each with the function that it says to be the owner."""

SLOT_17: dict[str, tuple[int | None, Lie]] = {
    "capability 10 ends at 0x200000 of BAR 2, which ends at 0x100000": (None, claim(length=2 * POOL)),
    "capability 10 names the region of 0000:00:11.0, which ends at 0x200000 of BAR 2, which ends at 0x100000": (
        0,
        claim(length=2 * POOL),
    ),
    "capability 10 is there more than once, with different contents": (None, twice),
    "capability 10 names the region of 0000:00:11.2, which is there more than once, with different contents": (
        2,
        HONEST,
    ),
    "capability 10 names the region of 0000:00:00.0, which is not a virtio function": (
        0,
        claim(device=0, function=0),
    ),
    "capability 10 names the region of 0000:00:0f.0, which has none": (0, claim(device=15)),
    "capability 10 names the region of 0000:00:12.0, which does not share it": (0, claim(device=18)),
    "capability 10 names the region of 0000:00:10.0, which has 0x100000 bytes at 0x0 of BAR 2, not 0x0 at 0x0 of"
    " BAR 4": (0, claim(device=16, bar=4, length=0)),
}
"""The same in slot 17. In slot 18 is an honest one that shares nothing."""


def test_capabilities_that_lie_are_refused_with_a_reason(lab: Any, kernel: Kernel) -> None:
    keepers = [PoolKeeper(POOL), PoolKeeper(POOL)]
    sharing = [
        [{"lie": lie, "share": SharedPoolConfig(keeper, owner)} for owner, lie in slot.values()]
        for keeper, slot in zip(keepers, (SLOT_16, SLOT_17), strict=True)
    ]
    slots: list[list[dict[str, Any]]] = [
        *([{"lie": lie}] for lie in OWN_LIES.values()),
        [{"lie": lie, "profile": DMB} for lie in SLOT_15],
        *sharing,
        [{"lie": HONEST}],
    ]
    job = Job((lab.scenarios / "liars.sh").read_text(), drivers=["nodma", "virtio_blk"])
    with ExitStack() as stack:
        sockets: list[list[Path]] = []
        for slot, functions in enumerate(slots):
            sockets.append([])
            for number, told in enumerate(functions):
                path = lab.directory / f"{slot}.{number}.sock"
                stack.enter_context(lab.serving(Liar(lab.image(path.stem, 8 << 20), **told), path))
                sockets[-1].append(path)
        machine = Machine(lab.kit.tools, kernel, job, functions=sockets, directory=lab.directory)
        stack.enter_context(machine)
        outcome = machine.finish(400)
    for keeper in keepers:
        keeper.close()
    refusals = [line.partition("no bouncing: ")[2] for line in outcome.file("refusals").splitlines()]
    assert refusals == [*OWN_LIES, *DMB_LIES, *list(SLOT_16)[2:], *SLOT_17]
    honest = ["0000:00:0f.0", "0000:00:10.0", "0000:00:10.1", "0000:00:12.0"]
    assert sorted(outcome.file("attached").split()) == honest
    assert int(outcome.file("refused")) == len(refusals)
    assert outcome.status == 0
    assert len(outcome.file("disks").split()) == len(honest)


class Spy(Device):
    """A disk full of ones that looks into the buffers that it is to fill, before it fills them."""

    device_type = DeviceType.BLOCK
    queues = (Queue("requests"),)
    Config = BlkConfig

    def __init__(self) -> None:
        super().__init__()
        self.config = BlkConfig.new(capacity=(32 << 20) // SECTOR)
        self.seen = self.dirty = 0

    def requests(self, request: Request) -> None:
        for view in request.writable:
            self.seen += len(view)
            self.dirty += len(view) - bytes(view).count(0)
            view[:] = b"\xff" * len(view)
        request.writable[-1][-1] = BlkStatus.OK
        request.written = sum(map(len, request.writable))


def test_the_device_is_not_shown_what_was_in_a_buffer_before(lab: Any, kernel: Kernel) -> None:
    """dd reads all of the disk into one buffer: each read finds the ones of the last there."""
    spy = Spy()
    socket = lab.directory / "spy.sock"
    script = "for size in 512 4k 64k 1M; do dd if=$(disk) of=/dev/null bs=$size count=1000 iflag=direct; done"
    job = Job(script, drivers=["nodma", "virtio_blk"])
    with (
        lab.serving(PciFunction(spy, pool=POOL), socket),
        Machine(lab.kit.tools, kernel, job, functions=[socket], directory=lab.directory) as machine,
    ):
        assert machine.finish(400).status == 0
    assert spy.seen > 64 << 20
    assert spy.dirty == 0
