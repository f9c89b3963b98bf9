"""A PCI function's configuration space: bytes, what of them is writable, and where its BARs are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from nodma.spec.layout import Layout
from nodma.spec.pci import (
    BAR_MEM_MASK,
    CONFIG_SIZE,
    EXTENDED_CONFIG_SIZE,
    FIRST_CAPABILITY,
    BarFlag,
    Capability,
    Command,
    PciStatus,
    Type0Header,
)

_BAR_BYTES: Final = Type0Header.bar0.size
_BAR_FLAG_BITS: Final = ~BAR_MEM_MASK & 0xFFFFFFFF
_WRITABLE_COMMAND: Final = Command.IO | Command.MEMORY | Command.BUS_MASTER | Command.SERR | Command.INTX_DISABLE


@dataclass(frozen=True, slots=True)
class MemoryBar:
    """A memory BAR of ``size`` bytes, a power of two of at least 16; a 64-bit one takes two registers."""

    index: int
    size: int
    is64: bool = False
    prefetchable: bool = False

    @property
    def flags(self) -> int:
        """The read-only low bits of the register."""
        return (BarFlag.TYPE_64 if self.is64 else 0) | (BarFlag.PREFETCH if self.prefetchable else 0)


class ConfigSpace:
    """4096 bytes of configuration space with ``header``, ``bars`` and ``capabilities``, in list order.

    The capabilities' offsets are in ``at``, by their place in the list.
    """

    def __init__(self, header: Type0Header, bars: Iterable[MemoryBar], capabilities: Iterable[Capability]) -> None:
        self.data = bytearray(EXTENDED_CONFIG_SIZE)
        self._mask = bytearray(EXTENDED_CONFIG_SIZE)
        self.bars = {bar.index: bar for bar in bars}
        self.at: list[int] = []
        self.data[: header.size] = bytes(header)
        for bar in self.bars.values():
            self._put_bar(bar)
        head = self.header = Type0Header(self.data)
        head.status |= PciStatus.CAP_LIST
        self._allow(Type0Header.command.offset, int(_WRITABLE_COMMAND).to_bytes(Type0Header.command.size, "little"))
        self._allow(Type0Header.cache_line_size.offset, b"\xff")
        self._allow(Type0Header.interrupt_line.offset, b"\xff")
        place, link = FIRST_CAPABILITY, Type0Header.capabilities.offset
        for capability in capabilities:
            if place + capability.size > CONFIG_SIZE:
                raise ValueError(f"the capabilities do not fit: {capability} at {place:#x}")
            self.data[link] = place
            self._put(capability, place)
            self.at.append(place)
            link = place + Capability.cap_next.offset
            place += -(-capability.size // 4) * 4
        self._initial = bytes(self.data)

    def reset(self) -> None:
        """Go back to what it was when made."""
        self.data[:] = self._initial

    def read(self, offset: int, count: int) -> bytes:
        """Read ``count`` bytes, which lie inside."""
        return bytes(self.data[offset : offset + count])

    def write(self, offset: int, data: bytes) -> None:
        """Write what is writable of the bytes from ``offset`` on, which lie inside."""
        for at, byte in enumerate(data, offset):
            mask = self._mask[at]
            if mask:
                self.data[at] = self.data[at] & ~mask | byte & mask

    @property
    def command(self) -> Command:
        """The command register."""
        return Command(self.header.command)

    def bar_address(self, index: int) -> int | None:
        """Return the bus address that a BAR decodes; None while decoding is off or no address is assigned."""
        if not self.command & Command.MEMORY:
            return None
        bar = self.bars[index]
        at = Type0Header.bar0.offset + index * _BAR_BYTES
        address = int.from_bytes(self.data[at : at + (8 if bar.is64 else 4)], "little") & ~_BAR_FLAG_BITS
        return address or None

    def _put(self, structure: Layout, offset: int) -> None:
        self.data[offset : offset + structure.size] = bytes(structure)
        for field in structure.fields:
            if field.writable:
                self._allow(offset + field.offset, field.writable.to_bytes(field.size, "little"))

    def _put_bar(self, bar: MemoryBar) -> None:
        at = Type0Header.bar0.offset + bar.index * _BAR_BYTES
        self.data[at] = bar.flags
        writable = -bar.size & ((1 << (64 if bar.is64 else 32)) - 1)
        self._allow(at, writable.to_bytes(8 if bar.is64 else 4, "little"))

    def _allow(self, offset: int, mask: bytes) -> None:
        self._mask[offset : offset + len(mask)] = mask
