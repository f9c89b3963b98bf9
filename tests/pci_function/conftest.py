"""A function with a disk in it, driven by hand, request by request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nodma.builds import load_interpreted
from nodma.pci_function import PciFunction
from nodma.ring import RingLayout
from nodma.spec.virtio import Status
from nodma.spec.virtio_blk import BlkRequest, BlkType

DriverRing = load_interpreted("nodma.ring.driver_end").DriverRing  # interpreted, its base can be set anew
BASE = 0x10_0000_0000
LAYOUT = RingLayout.packed_at(0, 16)
HEADER, DATA, STATUS = 0x8000, 0x9000, 0x8010


class Disk:
    """A function with a disk, driven by hand: its ring is ``layout`` in the window of ``lender``, its own as a rule."""

    def __init__(self, function: PciFunction, registers: Any, layout: RingLayout = LAYOUT) -> None:
        self.function = self.lender = function
        self.registers = registers(function)
        self.core = function.core
        self.layout = layout

    def start(self, base: int = BASE, features: int | None = None) -> None:
        self.registers.place(BASE if base == 0 else base)
        assert self.registers.negotiate(features) & Status.FEATURES_OK
        self.set_up(base)
        self.registers.ready()

    def set_up(self, base: int = BASE) -> None:
        self.ring = DriverRing(self.lender.window, self.layout, base=base, event_idx=True)
        self.registers.enable(self.layout, base)

    def offer_read(self, base: int = BASE) -> None:
        BlkRequest.codec.pack_into(self.lender.window.bytes, HEADER, BlkType.IN, 0, 4)
        self.lender.window.bytes[STATUS] = 0xFF
        self.ring._base = base
        self.ring.add([(HEADER, 16)], [(DATA, 512), (STATUS, 1)], "read")
        self.ring.publish()
        self.registers.notify()

    def work(self) -> None:
        while self.function.service():
            pass

    @property
    def answer(self) -> bytes:
        return bytes(self.lender.window.view(DATA, 4))


@pytest.fixture
def make_disk(make_function: Callable[..., PciFunction], registers: Any) -> Callable[..., Disk]:
    """Make disks: the ring's layout, and the function's options."""

    def make(layout: RingLayout = LAYOUT, **options: Any) -> Disk:
        return Disk(make_function(**options), registers, layout)

    return make


@pytest.fixture
def disk(make_disk: Callable[..., Disk]) -> Disk:
    return make_disk()
