"""A PCI function behind a vfio-user socket: the driver's process is its own VMM."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

from nodma.driver.bus import PciPeer
from nodma.driver.pool_partition import PoolPartition
from nodma.driver.slot_peers import NoPeers, SlotPeers
from nodma.errors import ProbeError
from nodma.pci import ConfigSpace
from nodma.spec.pci import BAR_COUNT, CapId, Command, MsixCapability, MsixControl, Type0Header
from nodma.spec.vfio_user import Irq, Region, RegionFlag
from nodma.vfio_user.client import Client, RegionReply
from nodma.window import Window

_FIRST_32: Final = 0xE000_0000
"""Where 32-bit BARs are put: below the space that PCs keep for interrupts."""
_FIRST_64: Final = 0x10_0000_0000
"""Where 64-bit BARs are put: above what a machine of 64 GiB has as memory."""


NOWHERE: Final = (-1, -1)
"""The place of a function that was not opened as one of a slot."""


class Addresses:
    """Hands out bus addresses for BARs, each aligned to its size."""

    def __init__(self) -> None:
        self._low, self._high = _FIRST_32, _FIRST_64

    def take(self, size: int, *, is64: bool) -> int:
        """Return the address of a BAR of ``size`` bytes."""
        at = -(-(self._high if is64 else self._low) // size) * size
        if is64:
            self._high = at + size
        else:
            self._low = at + size
        return at


class VfioUserBus:
    """Implements :class:`~nodma.driver.bus.PciBus` over any vfio-user server."""

    def __init__(
        self,
        client: Client,
        *,
        place: tuple[int, int] = NOWHERE,
        slot_peers: SlotPeers | None = None,
        addresses: Addresses | None = None,
    ) -> None:
        """Own ``client`` from here on."""
        self.client = client
        self.place = place
        self.mappable: dict[int, int] = {}
        """The BARs that can be mapped, once they are enabled: sizes by bus address."""
        self._slot_peers = slot_peers or NoPeers()
        self._addresses = addresses or Addresses()
        self._enabled = False
        regions = {bar: self._region(bar) for bar in range(BAR_COUNT)}
        self._sizes = {bar: info.size for bar, info in regions.items() if info.size}
        self._mappable = [bar for bar, info in regions.items() if info.flags & RegionFlag.MMAP]
        self._eventfds: list[int] = []

    @classmethod
    def connect(cls, path: Path | str, **options: Any) -> Self:
        """Connect to the server that listens at ``path``; further options are the constructor's."""
        return cls(Client.connect(path), **options)

    def peer(self, device: int, function: int) -> PciPeer | None:
        """Return another function of the slot, if they were opened together."""
        return self._slot_peers.peer(device, function)

    def partition(self, owner: PciPeer, bar: int, offset: int, length: int) -> PoolPartition | None:
        """Return this function's part of a shared region, if functions were opened together."""
        return self._slot_peers.partition(self, owner, bar, offset, length)

    def enable(self) -> None:
        """Assign addresses to the BARs, as firmware would, and turn memory decoding on. Once is enough."""
        if self._enabled:
            return
        for bar in ConfigSpace.parse(self.read_config(0, 256), self._sizes).bars:
            size = bar.size
            if size is None or bar.kind != "memory":
                continue
            at = Type0Header.bar0.offset + Type0Header.bar0.size * bar.index
            address = self._addresses.take(size, is64=bar.is64)
            self._write_config(at, address.to_bytes(8 if bar.is64 else 4, "little"))
            if bar.index in self._mappable:
                self.mappable[address] = size
        command = Command.MEMORY | Command.INTX_DISABLE
        self._write_config(Type0Header.command.offset, int(command).to_bytes(Type0Header.command.size, "little"))
        self._enabled = True
        self._slot_peers.enabled(self)

    def read_config(self, offset: int, count: int) -> bytes:
        """Read configuration space."""
        return self.client.region_read(Region.CONFIG, offset, count)

    def bar_sizes(self) -> Mapping[int, int]:
        """Return the size of each BAR that exists."""
        return self._sizes

    def read_bar(self, bar: int, offset: int, count: int) -> bytes:
        """Read a register."""
        return self.client.region_read(bar, offset, count)

    def write_bar(self, bar: int, offset: int, data: bytes) -> None:
        """Write a register."""
        self.client.region_write(bar, offset, data)

    def post_bar(self, bar: int, offset: int, data: bytes) -> None:
        """Write a register, and do not wait for the device."""
        self.client.region_write(bar, offset, data, reply=False)

    def map_bar(self, bar: int, offset: int, length: int) -> Window:
        """Map a part of a BAR. Raises ProbeError if the server does not let it be mapped."""
        info = self._region(bar, keep=True)
        if info.fd is None:
            raise ProbeError(f"the server hands out no descriptor for BAR {bar}: it cannot be mapped")
        return Window.adopt(info.fd, length, offset=info.offset + offset)

    def enable_msix(self, vectors: int) -> list[int]:
        """Turn MSI-X on, with an eventfd for each vector. Raises ProbeError if there are fewer."""
        capability = ConfigSpace.parse(self.read_config(0, 256), self._sizes).find(CapId.MSIX)
        have = self.client.irq_count(Irq.MSIX)
        if capability is None or have < vectors:
            raise ProbeError(f"the device has {have} MSI-X vectors, the driver needs {vectors}")
        self._eventfds = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(vectors)]
        control = capability.offset + MsixCapability.control.offset
        self._write_config(control, int(MsixControl.ENABLE).to_bytes(MsixCapability.control.size, "little"))
        self.client.set_eventfds(Irq.MSIX, 0, self._eventfds)
        return self._eventfds

    def close(self) -> None:
        """Disconnect."""
        self._slot_peers.gone(self)
        self.client.close()
        for fd in self._eventfds:
            os.close(fd)
        self._eventfds = []

    def _region(self, bar: int, *, keep: bool = False) -> RegionReply:
        info = self.client.region_info(bar)
        if info.fd is not None and not keep:
            os.close(info.fd)
        return info

    def _write_config(self, offset: int, data: bytes) -> None:
        self.client.region_write(Region.CONFIG, offset, data)
