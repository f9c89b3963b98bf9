"""Decode a configuration space. Whatever the bytes are, nothing here raises, loops, or grows with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from nodma.spec.layout import Layout
from nodma.spec.pci import (
    BAR_COUNT,
    BAR_IO_MASK,
    BAR_MEM_MASK,
    BAR_TYPE_MASK,
    BRIDGE_BAR_COUNT,
    CAPABILITY_POINTER_MASK,
    CONFIG_SIZE,
    EXPANSION_ROM,
    EXTENDED_CONFIG_SIZE,
    FIRST_CAPABILITY,
    HEADER_TYPE_MASK,
    NO_DEVICE,
    AfCapability,
    BarFlag,
    Capability,
    CapId,
    ExpressCapability,
    ExtCapId,
    ExtendedCapability,
    HeaderType,
    MsiCapability,
    MsiCapability32,
    MsiCapability64,
    MsiControl,
    MsixCapability,
    PciStatus,
    PmCapability,
    SerialNumberCapability,
    Type0Header,
    VendorCapability,
)
from nodma.spec.profiles import SELF
from nodma.spec.virtio_pci import (
    MODERN_DEVICE_BASE,
    VIRTIO_DEVICES,
    VIRTIO_VENDOR,
    CfgType,
    SharedSwiotlbCap,
    VirtioPciCap,
    VirtioPciCap64,
    VirtioPciCfgCap,
    VirtioPciNotifyCap,
    VirtioPciVendorCap,
)

_BAR_COUNTS: Final[Mapping[int, int]] = {HeaderType.NORMAL: BAR_COUNT, HeaderType.BRIDGE: BRIDGE_BAR_COUNT}
_STANDARD: Final[Mapping[int, type[Capability]]] = {
    CapId.PM: PmCapability,
    CapId.EXPRESS: ExpressCapability,
    CapId.MSIX: MsixCapability,
    CapId.AF: AfCapability,
}
_VIRTIO: Final[Mapping[int, type[VendorCapability]]] = {
    CfgType.NOTIFY: VirtioPciNotifyCap,
    CfgType.PCI: VirtioPciCfgCap,
    CfgType.SHARED_MEMORY: VirtioPciCap64,
    CfgType.VENDOR: VirtioPciVendorCap,
}

_NO_IDS: Final = NO_DEVICE.to_bytes(2, "little") * 2

L = TypeVar("L", bound=Layout)


@dataclass(frozen=True, slots=True)
class Bar:
    """A base address register. ``address`` is 0 while none is assigned; ``size`` in bytes, if known."""

    index: int
    kind: str
    address: int
    is64: bool = False
    prefetchable: bool = False
    size: int | None = None


@dataclass(frozen=True, slots=True)
class CapabilityView:
    """A capability at ``offset``, its bytes ``raw``; ``structure`` decodes them, where their kind is known."""

    offset: int
    cap_id: int
    raw: bytes
    structure: Layout


@dataclass(frozen=True, slots=True)
class VirtioCapability(CapabilityView):
    """A virtio structure: ``length`` bytes at ``offset_in_bar`` of BAR ``bar``."""

    cfg_type: int = 0
    bar: int = 0
    id: int = 0
    offset_in_bar: int = 0
    length: int = 0
    notify_off_multiplier: int = 0
    owner: tuple[int, int] = (SELF, SELF)
    """Capability 10: device and function whose BAR it is, 0xff for the function's own."""

    @property
    def end(self) -> int:
        """The offset in the BAR of the first byte after the structure."""
        return self.offset_in_bar + self.length


@dataclass(frozen=True, slots=True)
class ConfigSpace:
    """A decoded configuration space. ``broken`` tells what is wrong with the capability list.

    It is ``truncated`` if the list goes on beyond the bytes that there are. Unless ``sizes_known``, a BAR may
    exist that is not in ``bars``: without an address its register may be all zeros. So may that of an expansion ROM.

    The ids of a ``virtual_function`` read as ones (PCIe SR-IOV, 9.3.4.1.1); ``header`` has those given to ``parse``.
    """

    raw: bytes
    header: Type0Header
    bars: tuple[Bar, ...]
    capabilities: tuple[CapabilityView, ...]
    extended: tuple[CapabilityView, ...] = ()
    broken: tuple[str, ...] = field(default=())
    truncated: bool = False
    sizes_known: bool = False
    rom_size: int = 0
    virtual_function: bool = False

    @classmethod
    def parse(
        cls, raw: bytes, bar_sizes: Mapping[int, int] | None = None, ids: tuple[int, int] | None = None
    ) -> ConfigSpace:
        """Decode 64, 256 or 4096 bytes; what is missing reads as zeros.

        ``bar_sizes`` (bytes) are not in them, nor are ``ids``, vendor and device, if this is a virtual function. The
        size of an expansion ROM is that of EXPANSION_ROM.
        """
        whole = raw[:EXTENDED_CONFIG_SIZE].ljust(CONFIG_SIZE, b"\0")
        virtual = raw.startswith(_NO_IDS) and any(byte != 0xFF for byte in raw[:FIRST_CAPABILITY])
        if virtual and ids:
            whole = b"".join(number.to_bytes(2, "little") for number in ids) + whole[len(_NO_IDS) :]
        header = Type0Header(whole)
        broken: list[str] = []
        capabilities: list[CapabilityView] = []
        truncated = False
        answers = virtual or header.vendor_id != NO_DEVICE
        for at in _walk(whole, header, broken) if answers else ():
            truncated = at >= len(raw)
            if truncated:
                break
            capabilities.append(_capability(whole, header, at, broken))
        return cls(
            raw=raw,
            header=header,
            bars=tuple(_bars(header, bar_sizes or {})) if answers else (),
            capabilities=tuple(capabilities),
            extended=tuple(_walk_extended(whole, broken)),
            broken=tuple(broken),
            truncated=truncated,
            sizes_known=bar_sizes is not None,
            rom_size=(bar_sizes or {}).get(EXPANSION_ROM, 0),
            virtual_function=virtual,
        )

    @property
    def is_virtio(self) -> bool:
        """Whether the vendor's own capabilities are virtio's."""
        return _is_virtio(self.header)

    @property
    def answers(self) -> bool:
        """Whether there is a function at all: else all ones are read."""
        return self.virtual_function or self.header.vendor_id != NO_DEVICE

    @property
    def device_type(self) -> int | None:
        """The virtio device type (chapter 5); None if this is not a virtio device.

        A transitional device has it as its subsystem id (4.1.2.1).
        """
        if not self.is_virtio:
            return None
        if self.header.device_id >= MODERN_DEVICE_BASE:
            return self.header.device_id - MODERN_DEVICE_BASE
        return self.header.subsystem_id

    @property
    def has_rom(self) -> bool:
        """Whether there is an expansion ROM, as far as is known."""
        normal = self.header.header_type & HEADER_TYPE_MASK == HeaderType.NORMAL
        return self.answers and normal and bool(self.rom_size or self.header.rom_address)

    def bar(self, index: int) -> Bar | None:
        """Return a BAR, if it exists."""
        return next((bar for bar in self.bars if bar.index == index), None)

    def may_have_bar(self, index: int) -> bool:
        """Whether a BAR exists, or could as far as is known."""
        if self.bar(index) is not None:
            return True
        upper_half = any(bar.is64 and bar.index + 1 == index for bar in self.bars)
        return not self.sizes_known and not upper_half and index < BAR_COUNT

    def find(self, cap_id: int) -> CapabilityView | None:
        """Return the first capability of a kind."""
        return next((cap for cap in self.capabilities if cap.cap_id == cap_id), None)

    def virtio_all(self, cfg_type: int) -> list[VirtioCapability]:
        """Return every virtio structure of a type, in the order of the list, which is that of preference."""
        return [cap for cap in self.capabilities if isinstance(cap, VirtioCapability) and cap.cfg_type == cfg_type]

    def virtio(self, cfg_type: int) -> VirtioCapability | None:
        """Return the first virtio structure of a type whose BAR number is not reserved (4.1.4)."""
        return next((cap for cap in self.virtio_all(cfg_type) if cap.bar < BAR_COUNT), None)


def _is_virtio(header: Type0Header) -> bool:
    return header.vendor_id == VIRTIO_VENDOR and header.device_id in VIRTIO_DEVICES


def _bars(header: Type0Header, sizes: Mapping[int, int]) -> Iterator[Bar]:
    registers = [header.bar0, header.bar1, header.bar2, header.bar3, header.bar4, header.bar5]
    count = _BAR_COUNTS.get(header.header_type & HEADER_TYPE_MASK, 0)
    index = 0
    while index < count:
        value = registers[index]
        size = sizes.get(index)
        if value & BarFlag.IO:
            yield Bar(index, "io", value & BAR_IO_MASK, size=size)
        elif value or size:
            is64 = value & BAR_TYPE_MASK == BarFlag.TYPE_64 and index + 1 < count
            high = registers[index + 1] << 32 if is64 else 0
            yield Bar(index, "memory", high | value & BAR_MEM_MASK, is64, bool(value & BarFlag.PREFETCH), size)
            index += is64
        index += 1


def _walk(whole: bytes, header: Type0Header, broken: list[str]) -> Iterator[int]:
    """Follow the capability list, as far as it can be followed; returns where each capability is."""
    has_list = header.header_type & HEADER_TYPE_MASK in _BAR_COUNTS and header.status & PciStatus.CAP_LIST
    if not has_list:
        return
    seen: set[int] = set()
    at = header.capabilities & CAPABILITY_POINTER_MASK
    while at:
        if at < FIRST_CAPABILITY:
            broken.append(f"the capability list points into the header, to {at:#04x}")
            return
        if at in seen:
            broken.append(f"the capability list has a loop: {at:#04x} comes again")
            return
        seen.add(at)
        head = Capability(whole, at)
        if head.cap_id == 0xFF:
            broken.append(f"the capability list points to {at:#04x}, where nothing answers")
            return
        yield at
        at = head.cap_next & CAPABILITY_POINTER_MASK


def _capability(whole: bytes, header: Type0Header, at: int, broken: list[str]) -> CapabilityView:
    cap_id = whole[at]
    if cap_id == CapId.VENDOR:
        length = VendorCapability(_padded(whole, at, VendorCapability.size)).cap_len
        if length < VendorCapability.size or at + length > CONFIG_SIZE:
            broken.append(f"the vendor capability at {at:#04x} says it has {length} bytes")
        raw = whole[at : min(at + max(length, VendorCapability.size), CONFIG_SIZE)]
        if _is_virtio(header):
            return _virtio(at, raw)
        return CapabilityView(at, cap_id, raw, _view(VendorCapability, raw))
    layout = _msi_form(whole, at) if cap_id == CapId.MSI else _STANDARD.get(cap_id, Capability)
    raw = whole[at : min(at + layout.size, CONFIG_SIZE)]
    return CapabilityView(at, cap_id, raw, _view(layout, raw))


def _msi_form(whole: bytes, at: int) -> type[Capability]:
    control = MsiCapability(_padded(whole, at, MsiCapability.size)).control
    return MsiCapability64 if control & MsiControl.ADDRESS_64 else MsiCapability32


def _virtio(at: int, raw: bytes) -> CapabilityView:
    cap = _view(VirtioPciCap, raw)
    cfg_type = cap.cfg_type
    layout = _VIRTIO.get(cfg_type, VirtioPciCap)
    if cfg_type == CfgType.SWIOTLB and len(raw) >= SharedSwiotlbCap.size:
        layout = SharedSwiotlbCap
    structure = _view(layout, raw)
    more: dict[str, Any] = {}
    offset, length = cap.offset, cap.length
    if cfg_type == CfgType.VENDOR:
        return CapabilityView(at, CapId.VENDOR, raw, structure)
    if isinstance(structure, VirtioPciCap64):
        offset |= structure.offset_hi << 32
        length |= structure.length_hi << 32
    elif isinstance(structure, VirtioPciNotifyCap):
        more["notify_off_multiplier"] = structure.notify_off_multiplier
    elif isinstance(structure, SharedSwiotlbCap):
        more["owner"] = (structure.device, structure.function)
    return VirtioCapability(
        at, CapId.VENDOR, raw, structure, cfg_type=cfg_type, bar=cap.bar, id=cap.id, offset_in_bar=offset,
        length=length, **more,
    )  # fmt: skip


def _walk_extended(whole: bytes, broken: list[str]) -> Iterator[CapabilityView]:
    seen: set[int] = set()
    at = CONFIG_SIZE
    while at and at + ExtendedCapability.size <= len(whole):
        structure = ExtendedCapability(whole, at)
        if structure.header in (0, 0xFFFFFFFF):
            return
        if at in seen:
            broken.append(f"the extended capability list has a loop: {at:#05x} comes again")
            return
        seen.add(at)
        layout = SerialNumberCapability if structure.cap_id == ExtCapId.SERIAL_NUMBER else ExtendedCapability
        raw = whole[at : at + layout.size]
        yield CapabilityView(at, structure.cap_id, raw, _view(layout, raw))
        at = structure.next
        if at and at < CONFIG_SIZE:
            broken.append(f"the extended capability list points to {at:#05x}")
            return


def _padded(whole: bytes, at: int, length: int) -> bytes:
    return whole[at : at + length].ljust(length, b"\0")


def _view(layout: type[L], raw: bytes) -> L:
    """View bytes as a structure; what is missing of it reads as zeros."""
    return layout(raw.ljust(layout.size, b"\0"))
