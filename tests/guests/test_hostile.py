"""Devices that die, lie, write over their rings, or keep silent: each costs the guest that device, and nothing else.

Each function below does one thing wrong, when the guest's script asks for it by a line "PLEASE word". Beside them is an
honest disk, which must go on working; a report of the kernel's fails any test (see conftest.py).
"""

from __future__ import annotations

import dataclasses
import random
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from nodma.device import BlockDevice, Device, Queue
from nodma.device.image import Image
from nodma.guest import Job, Kernel, Machine, Outcome, Shape, debug_kernel
from nodma.guest.console import Console
from nodma.pci_function import PciFunction, PoolKeeper, SharedPoolConfig
from nodma.pci_function.capabilities import COMMON_AREA, make_capabilities
from nodma.ring import Request
from nodma.spec.pci import Capability
from nodma.spec.profiles import DMB
from nodma.spec.virtio import DescFlag, Descriptor, DeviceType, Feature, Status
from nodma.spec.virtio_blk import SECTOR, BlkConfig, BlkStatus
from nodma.spec.virtio_pci import CfgType, CommonCfg, VirtioPciCap

pytestmark = pytest.mark.timeout(240)
PLAIN = Shape()
POOL = 1 << 20
DISK = 8 << 20
ONES = 0xFF
ADMIN_VQ = 41
DESCRIPTOR = Descriptor.size
STATUS = COMMON_AREA + CommonCfg.device_status.offset
GENERATION = COMMON_AREA + CommonCfg.config_generation.offset
PROMPT = "watch_ms=200 leave_ms=2000 reset_ms=1000 take_on_ms=2000"
"""The module's patience, made short."""


class Hostile(PciFunction):
    """A disk that is honest until :attr:`does` says otherwise."""

    def __init__(self, image: Path, *, pool: int = POOL, device: Device | None = None, **more: Any) -> None:
        self.does = "well"
        self.generations = 0
        with mock.patch("nodma.pci_function.function.make_capabilities", self.present):
            super().__init__(device or BlockDevice(Image(image), pool=min(pool, POOL)), pool=pool, **more)

    def present(self, *given: Any) -> list[Capability]:
        """Return the capabilities to show."""
        return make_capabilities(*given)

    def service(self) -> bool:
        return False if self.does in ("silent", "gone") else super().service()

    def _read_registers(self, offset: int, count: int) -> bytes:
        if self.does == "gone":
            return bytes([ONES]) * count
        data = super()._read_registers(offset, count)
        if offset == STATUS and count == 1 and (self.does == "ready" or (self.does == "stuck" and not data[0])):
            return bytes([data[0] | Status.DRIVER_OK])
        if offset == GENERATION and count == 1 and self.does == "unsettled":
            self.generations += 1
            return bytes([self.generations & ONES])
        return data

    def descriptors(self) -> memoryview:
        """Return the descriptor table, for writing; nothing while there is none."""
        queue, reach = self.core.queues[0], self.core.address_range
        if not queue.enabled or not reach:
            return memoryview(bytearray())
        return self.window.view(queue.desc - reach.base, queue.size * DESCRIPTOR)


class Chaining(Device):
    """A disk of zeros that, before it answers a request, gives every descriptor a next one: chains without an end."""

    device_type = DeviceType.BLOCK
    queues = (Queue("requests"),)
    Config = BlkConfig

    def __init__(self) -> None:
        super().__init__()
        self.config = BlkConfig.new(capacity=DISK // SECTOR)
        self.descriptors: Callable[[], memoryview] | None = None

    def requests(self, request: Request) -> None:
        request.writable[-1][-1] = BlkStatus.OK
        request.written = sum(map(len, request.writable))
        if self.descriptors:
            table = self.descriptors()
            for at in range(Descriptor.flags.offset, len(table), DESCRIPTOR):
                table[at] |= DescFlag.NEXT


@contextmanager
def noise(function: Hostile) -> Iterator[None]:
    """Write over a function's descriptors, again and again."""
    stop = threading.Event()

    def write() -> None:
        while not stop.wait(0.0005):
            table = function.descriptors()
            table[:] = random.randbytes(len(table))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class Greedy(Hostile):
    """Shows less configuration than its features have, and offers features with which Linux waits without a bound."""

    def __init__(self, image: Path) -> None:
        super().__init__(image)
        self.core.offered |= 1 << Feature.IN_ORDER | 1 << Feature.RING_RESET | 1 << ADMIN_VQ

    def present(self, *given: Any) -> list[Capability]:
        made = super().present(*given)
        (device,) = (cap for cap in made if isinstance(cap, VirtioPciCap) and cap.cfg_type == CfgType.DEVICE)
        device.length = BlkConfig.capacity.end
        return made


class Guest:
    """A machine with functions of this process, whose script asks for what they are to do."""

    def __init__(self, lab: Any, kernel: Kernel, script: str, shape: Shape = PLAIN) -> None:
        self.lab, self.kernel, self.shape = lab, kernel, shape
        self.job = Job((lab.scenarios / f"{script}.sh").read_text(), drivers=[f"nodma {PROMPT}", "virtio_blk"])
        self.slots: list[list[Path]] = []
        self.stack = ExitStack()

    def slot(self, *functions: PciFunction) -> None:
        self.slots.append([])
        for function in functions:
            path = self.lab.directory / f"{len(self.slots)}.{len(self.slots[-1])}.sock"
            self.stack.enter_context(self.lab.serving(function, path))
            self.slots[-1].append(path)

    def disk(self, name: str, **more: Any) -> Hostile:
        """A function in a slot of its own."""
        function = Hostile(self.lab.image(name, DISK), **more)
        self.slot(function)
        return function

    def run(self, asked: dict[str, Callable[[], None]], seconds: float = 90) -> Outcome:
        """Run the script, which must end well and power the guest off; do what it asks for, in this order."""
        with self.stack:
            machine = self.stack.enter_context(
                Machine(
                    self.lab.kit.tools,
                    self.kernel,
                    self.job,
                    functions=self.slots,
                    shape=self.shape,
                    directory=self.lab.directory,
                )
            )
            for word, do in asked.items():
                machine.console.expect(f"PLEASE {word}", seconds)
                do()
                machine.console.send("done")
            outcome = machine.finish(seconds)
            assert outcome.status == 0, machine.console.tail()
            return outcome


@pytest.mark.quick_on_debug
def test_a_device_that_is_gone_or_says_it_is_ready_is_let_go_of(lab: Any, kernel: Kernel) -> None:
    """The status of both looks as if a driver had just started them, when it is to be let go of."""
    guest = Guest(lab, kernel, "gone")
    removed, unbound, ready = (guest.disk(name) for name in ("removed", "unbound", "ready"))

    def change() -> None:
        removed.does = unbound.does = "gone"
        ready.does = "ready"

    outcome = guest.run({"die": change})
    assert outcome.file("dmesg").count("answers with ones only, it is gone: given up") == 2
    assert outcome.file("disks").split() == ["vdc"]
    assert (
        len(re.findall(r"bounces through .* mapped (write-back|uncached-minus), profile", outcome.file("dmesg"))) == 3
    )


UNMAPPING = re.compile(r"DMA-API: .*device driver tries to free DMA memory|WARNING: .* at kernel/dma/debug.c")
"""What a debug kernel says when virtio_ring follows the device's chain, before anybody else learns of it."""


def test_descriptors_that_a_device_writes_over_cost_that_device_only(
    lab: Any, kernel: Kernel, consoles: list[Console]
) -> None:
    guest = Guest(lab, kernel, "tampered", shape=Shape(cpus=2))
    device = Chaining()
    chained, noisy, _ = guest.disk("chained", device=device), guest.disk("noisy"), guest.disk("honest")
    with ExitStack() as stack:

        def change() -> None:
            device.descriptors = chained.descriptors
            stack.enter_context(noise(noisy))

        outcome = guest.run({"tamper": change})
    assert outcome.file("honest") == "0\n"
    assert outcome.file("unbound").split() == ["vda", "vdb"]
    if kernel.name == debug_kernel.NAME:
        reports = [line for console in consoles for line in debug_kernel.reports(console.text)]
        assert [line for line in reports if not UNMAPPING.search(line)] == []
        consoles.clear()
    said = outcome.file("dmesg")
    assert "virtio0: nodma: the device has changed its descriptors: given up" in said
    assert re.search("virtio1: nodma: the device (has changed its descriptors|asks for a reset|returned what)", said)


@pytest.mark.quick_on_debug
def test_nothing_waits_without_a_bound_for_a_device(lab: Any, newest: Kernel) -> None:
    """Resets that are ignored, requests that are never answered, a configuration that never settles."""
    guest = Guest(lab, newest, "stuck")
    keeper = PoolKeeper(POOL)
    stuck, silent = guest.disk("stuck"), guest.disk("silent")
    guest.disk("honest")
    owner, sharer = (
        Hostile(lab.image(name, DISK), share=SharedPoolConfig(keeper, number))
        for name, number in (("owner", None), ("sharer", 0))
    )
    guest.slot(owner, sharer)
    unsettled = guest.disk("unsettled")
    last = guest.disk("last")
    guest.slot(Greedy(lab.image("greedy", DISK)))

    def change() -> None:
        stuck.does = last.does = "stuck"
        silent.does = sharer.does = "silent"
        unsettled.does = "unsettled"

    outcome = guest.run({"stop": change})
    keeper.close()
    assert outcome.file("done").split() == ["honest", "stuck", "silent", "owner", "unsettled", "greedy"]
    said = outcome.file("dmesg")
    assert "did not finish its reset in time: given up" in said
    assert "did not finish its reset in time: not used" in said
    assert said.count("keeps its driver from being unbound, and answers nothing: given up, 1 requests ended") == 2
    assert "configuration does not settle" in said


@pytest.mark.distribution_kernel  # the debug kernel has the driver built in
def test_loading_beside_a_driver_that_waits_forever_is_bounded(lab: Any, newest: Kernel) -> None:
    blk = {f"blk/{name}": content for name, content in newest.files_of(["virtio_blk"]).items() if "virtio_blk" in name}
    job = Job(
        (lab.scenarios / "waiting.sh").read_text(),
        drivers=["virtio_pci"],
        files={**blk, "nodma.ko": newest.build_module(lab.kit.directory)},
    )
    image = lab.image()
    with lab.serve(image, "--policy", "hopeful"), lab.machine(newest, job, [image]) as machine:
        machine.console.expect("its driver waits for the device and does not let go of it", 90)
        machine.console.expect("LOADED", 30)  # no more: that driver, which is not ours, keeps the guest from ending


def test_a_device_does_not_choose_how_much_memory_its_guest_spends(lab: Any, newest: Kernel) -> None:
    """64 GiB, of which the guest uses what it has memory for."""
    huge = 64 << 30
    shape = Shape(memory=512, arguments=["-global", "q35-pcihost.pci-hole64-size=512G"])
    guest = Guest(lab, newest, "huge", shape=shape)
    with mock.patch("nodma.pci_function.function.MAX_POOL", huge):
        guest.disk("huge", pool=huge, profile=dataclasses.replace(DMB, max_region=huge))
    outcome = guest.run({})
    used = int(outcome.file("size"))
    assert 64 << 20 <= used <= 1 << 30
    assert f"uses {used >> 20} MiB of its region of 65536" in outcome.file("dmesg")
