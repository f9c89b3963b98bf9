"""A PCI function of this machine, driven from user space by what Linux shows of it under ``/sys/bus/pci``.

So a guest uses a device with restricted DMA without any driver in its kernel: rings and buffers are in the BAR, which
is mapped, and nothing needs an address of the program's own memory. There are no interrupts; the driver polls.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

from nodma.driver.bus import PciPeer
from nodma.driver.pool_partition import PoolPartition
from nodma.driver.slot_peers import NoPeers, SlotPeers
from nodma.errors import ProbeError, Unavailable, UsageError
from nodma.pci.sysfs import ROOT, bar_sizes, device_and_function, full_address
from nodma.spec.pci import Command, Type0Header
from nodma.window import Window
from nodma.window.window import Word

_WIDTHS: Final[Mapping[int, Word]] = {1: "B", 2: "H", 4: "I"}
_HALF: Final = 4


class SysfsBus:
    """Implements :class:`~nodma.driver.bus.PciBus` over the directory of a function in sysfs. Root may."""

    def __init__(self, place: Path, *, slot_peers: SlotPeers | None = None) -> None:
        """Open the function. Raises UsageError if it is not there or may not be used, ProbeError if a driver has it."""
        self._place = place
        self._slot_peers = slot_peers or NoPeers()
        self.place = device_and_function(place.name)
        self.address = place.name
        self._windows: dict[int, Window] = {}
        self._enabled = False
        if not place.is_dir():
            raise Unavailable(f"no PCI function {self.address} on this machine ({place})")
        driver = place / "driver"
        if driver.is_symlink():
            raise ProbeError(
                f"the driver {driver.readlink().name} is bound to {self.address}: first write that address to"
                f" {driver}/unbind"
            )
        try:
            self._config = os.open(place / "config", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise Unavailable(f"{place}/config is not writable: {error.strerror} (run as root)") from error
        self._sizes = bar_sizes(place / "resource") or {}

    @classmethod
    def open(cls, address: str, root: Path = ROOT, *, slot_peers: SlotPeers | None = None) -> Self:
        """Open the function at a PCI address. Raises as the constructor does."""
        full = full_address(address)
        if full is None:
            raise UsageError(f"{address!r} is not a PCI address: write 00:05.0 or 0000:00:05.0")
        return cls(root / full, slot_peers=slot_peers)

    def enable(self) -> None:
        """Make the kernel enable the function and decode its BARs. Bus mastering stays off: nothing needs it."""
        if self._enabled:
            return
        try:
            (self._place / "enable").write_text("1")
        except OSError as error:
            raise Unavailable(f"{self._place}/enable is not writable: {error.strerror} (run as root)") from error
        self._enabled = True
        field = Type0Header.command
        command = int.from_bytes(self.read_config(field.offset, field.size), "little")
        command = command & ~int(Command.BUS_MASTER) | Command.MEMORY | Command.INTX_DISABLE
        os.pwrite(self._config, command.to_bytes(field.size, "little"), field.offset)

    def read_config(self, offset: int, count: int) -> bytes:
        """Read configuration space."""
        return os.pread(self._config, count, offset)

    def bar_sizes(self) -> Mapping[int, int]:
        """Return the size of each BAR that exists."""
        return self._sizes

    def read_bar(self, bar: int, offset: int, count: int) -> bytes:
        """Read a register, by one load; 8 bytes by two."""
        if count > _HALF:
            return self.read_bar(bar, offset, _HALF) + self.read_bar(bar, offset + _HALF, count - _HALF)
        if count not in _WIDTHS:  # structures that are not one register are read byte by byte
            return b"".join(self.read_bar(bar, offset + at, 1) for at in range(count))
        return self._registers(bar).words(_WIDTHS[count], offset, 1)[0].to_bytes(count, "little")

    def write_bar(self, bar: int, offset: int, data: bytes) -> None:
        """Write a register of 1, 2 or 4 bytes, by one store."""
        self._registers(bar).words(_WIDTHS[len(data)], offset, 1)[0] = int.from_bytes(data, "little")

    def post_bar(self, bar: int, offset: int, data: bytes) -> None:
        """The same: a store does not wait."""
        self.write_bar(bar, offset, data)

    def map_bar(self, bar: int, offset: int, length: int) -> Window:
        """Map a part of a BAR. Raises ProbeError if the kernel does not let it be mapped."""
        if bar not in self._sizes:
            raise ProbeError(f"{self.address} has no BAR {bar}")
        path = self._place / f"resource{bar}"
        try:
            return Window.adopt(os.open(path, os.O_RDWR | os.O_SYNC | os.O_CLOEXEC), length, offset=offset)
        except OSError as error:
            raise ProbeError(f"BAR {bar} cannot be mapped ({path}): {error.strerror}") from error

    def peer(self, device: int, function: int) -> PciPeer | None:
        """Return another function of the slot, if they were opened together."""
        return self._slot_peers.peer(device, function)

    def partition(self, owner: PciPeer, bar: int, offset: int, length: int) -> PoolPartition | None:
        """Return this function's part of a shared region, if functions were opened together."""
        return self._slot_peers.partition(self, owner, bar, offset, length)

    def enable_msix(self, vectors: int) -> list[int]:  # noqa: ARG002 - the protocol's signature
        """Raise ProbeError: user space gets no interrupts this way."""
        raise ProbeError("there are no interrupts for a driver in user space: poll (polling=True)")

    def close(self) -> None:
        """Unmap, and let the kernel disable the function again."""
        self._slot_peers.gone(self)
        for window in self._windows.values():
            window.close()
        self._windows.clear()
        if self._enabled:
            with contextlib.suppress(OSError):  # the function is gone
                (self._place / "enable").write_text("0")
            self._enabled = False
        if self._config >= 0:
            os.close(self._config)
            self._config = -1

    def _registers(self, bar: int) -> Window:
        if bar not in self._windows:
            self._windows[bar] = self.map_bar(bar, 0, self._sizes.get(bar, 0))
        return self._windows[bar]
