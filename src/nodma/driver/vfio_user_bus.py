"""A PCI function behind a vfio-user socket: the driver's process is its own VMM."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

from nodma.errors import ProbeError
from nodma.pci import ConfigSpace
from nodma.spec.pci import BAR_COUNT, CapId, Command, MsixCapability, MsixControl, Type0Header
from nodma.spec.vfio_user import Irq, Region
from nodma.vfio_user.client import Client, RegionReply
from nodma.window import Window

_FIRST_32: Final = 0xE000_0000
"""Where 32-bit BARs are put: below the space that PCs keep for interrupts."""
_FIRST_64: Final = 0x10_0000_0000
"""Where 64-bit BARs are put: above what a machine of 64 GiB has as memory."""


class VfioUserBus:
    """Implements :class:`~nodma.driver.bus.PciBus` over any vfio-user server."""

    def __init__(self, client: Client) -> None:
        """Own ``client`` from here on."""
        self.client = client
        self._sizes = {bar: info.size for bar in range(BAR_COUNT) if (info := self._region(bar)).size}
        self._eventfds: list[int] = []

    @classmethod
    def connect(cls, path: Path | str) -> Self:
        """Connect to the server that listens at ``path``."""
        return cls(Client.connect(path))

    def enable(self) -> None:
        """Give the BARs addresses, as firmware would, and turn memory decoding on."""
        low, high = _FIRST_32, _FIRST_64
        for bar in ConfigSpace.parse(self.read_config(0, 256), self._sizes).bars:
            size = bar.size
            if size is None or bar.kind != "memory":
                continue
            at = Type0Header.bar0.offset + Type0Header.bar0.size * bar.index
            if bar.is64:
                high = -(-high // size) * size
                self._write_config(at, high.to_bytes(8, "little"))
                high += size
            else:
                low = -(-low // size) * size
                self._write_config(at, low.to_bytes(4, "little"))
                low += size
        command = Command.MEMORY | Command.INTX_DISABLE
        self._write_config(Type0Header.command.offset, int(command).to_bytes(Type0Header.command.size, "little"))

    def read_config(self, offset: int, count: int) -> bytes:
        """Read configuration space."""
        return self.client.region_read(Region.CONFIG, offset, count)

    def bar_sizes(self) -> Mapping[int, int]:
        """Give the size of each BAR that exists."""
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

    def map_bar(self, bar: int) -> Window:
        """Map a BAR. Raises ProbeError if the server does not let it be mapped."""
        info = self._region(bar, keep=True)
        if info.fd is None:
            raise ProbeError(f"the server hands out no descriptor for BAR {bar}: it cannot be mapped")
        return Window.adopt(info.fd, info.size, offset=info.offset)

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
