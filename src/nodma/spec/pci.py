"""PCI configuration space (PCI Local Bus 3.0 chapter 6, PCI Express 6.0 chapter 7)."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

from nodma.spec.layout import Layout, blob, le16, le32, u8

CONFIG_SIZE: Final = 256
"""Bytes of a conventional configuration space."""
EXTENDED_CONFIG_SIZE: Final = 4096
"""Bytes of a PCI Express configuration space."""
BAR_COUNT: Final = 6


class Type0Header(Layout):
    """The header of a function that is no bridge (3.0, 6.1)."""

    vendor_id = le16()
    device_id = le16()
    command = le16(rw=True)
    status = le16()
    revision_id = u8()
    prog_if = u8()
    subclass = u8()
    base_class = u8()
    cache_line_size = u8(rw=True)
    latency_timer = u8()
    header_type = u8()
    bist = u8()
    bar0 = le32(rw=True)
    bar1 = le32(rw=True)
    bar2 = le32(rw=True)
    bar3 = le32(rw=True)
    bar4 = le32(rw=True)
    bar5 = le32(rw=True)
    cardbus_cis = le32()
    subsystem_vendor_id = le16()
    subsystem_id = le16()
    rom_address = le32()
    capabilities = u8()
    reserved = blob(7)
    interrupt_line = u8(rw=True)
    interrupt_pin = u8()
    min_gnt = u8()
    max_lat = u8()


class Command(IntFlag):
    """Command register."""

    IO = 1 << 0
    MEMORY = 1 << 1
    BUS_MASTER = 1 << 2
    SPECIAL = 1 << 3
    INVALIDATE = 1 << 4
    VGA_PALETTE = 1 << 5
    PARITY = 1 << 6
    WAIT = 1 << 7
    SERR = 1 << 8
    FAST_BACK = 1 << 9
    INTX_DISABLE = 1 << 10


class PciStatus(IntFlag):
    """Status register."""

    INTERRUPT = 1 << 3
    CAP_LIST = 1 << 4


class BarFlag(IntFlag):
    """The low bits of a base address register (3.0, 6.2.5.1)."""

    IO = 1 << 0
    TYPE_64 = 1 << 2
    PREFETCH = 1 << 3


BAR_TYPE_MASK: Final = 0x6
BAR_MEM_MASK: Final = ~0xF & 0xFFFFFFFF
BAR_IO_MASK: Final = ~0x3 & 0xFFFFFFFF
HEADER_TYPE_MASK: Final = 0x7F
HEADER_MULTIFUNCTION: Final = 0x80
FIRST_CAPABILITY: Final = 0x40
"""Capabilities lie behind the header, 4-byte aligned."""


class CapId(IntEnum):
    """Capability ids."""

    PM = 0x01
    AGP = 0x02
    VPD = 0x03
    SLOT = 0x04
    MSI = 0x05
    VENDOR = 0x09
    BRIDGE_SSID = 0x0D
    EXPRESS = 0x10
    MSIX = 0x11
    SATA = 0x12
    AF = 0x13
    EA = 0x14


class Capability(Layout):
    """What every capability begins with."""

    cap_id = u8()
    cap_next = u8()


class VendorCapability(Capability):
    """A vendor-specific capability; ``cap_len`` is its whole length in bytes."""

    cap_len = u8()


class MsixControl(IntFlag):
    """MSI-X message control."""

    FUNCTION_MASK = 1 << 14
    ENABLE = 1 << 15


class MsixCapability(Capability):
    """MSI-X capability (3.0, 6.8.2). The table's size less one is in ``control``."""

    control = le16(rw=MsixControl.ENABLE | MsixControl.FUNCTION_MASK)
    table = le32()
    pba = le32()


MSIX_TABLE_SIZE_MASK: Final = 0x7FF
MSIX_BIR_MASK: Final = 0x7
"""The low bits of ``table`` and ``pba`` name the BAR, the others the offset."""


class MsixEntry(Layout):
    """One entry of the MSI-X table."""

    address_low = le32(rw=True)
    address_high = le32(rw=True)
    data = le32(rw=True)
    vector_control = le32(rw=True)


MSIX_VECTOR_MASKED: Final = 1


class ExpressCapability(Capability):
    """PCI Express capability, version 2 (PCIe 7.5.3)."""

    flags = le16()
    device_caps = le32()
    device_control = le16(rw=True)
    device_status = le16()
    link_caps = le32()
    link_control = le16()
    link_status = le16()
    slot_caps = le32()
    slot_control = le16()
    slot_status = le16()
    root_control = le16()
    root_caps = le16()
    root_status = le32()
    device_caps2 = le32()
    device_control2 = le16(rw=True)
    device_status2 = le16()
    link_caps2 = le32()
    link_control2 = le16()
    link_status2 = le16()
    slot_caps2 = le32()
    slot_control2 = le16()
    slot_status2 = le16()


EXPRESS_VERSION_MASK: Final = 0xF
EXPRESS_TYPE_SHIFT: Final = 4
EXPRESS_TYPE_MASK: Final = 0xF


class ExpressType(IntEnum):
    """Device/port type of a PCI Express function."""

    ENDPOINT = 0
    LEGACY_ENDPOINT = 1
    ROOT_PORT = 4
    UPSTREAM_PORT = 5
    DOWNSTREAM_PORT = 6
    PCIE_TO_PCI = 7
    PCI_TO_PCIE = 8
    RC_ENDPOINT = 9
    RC_EVENT_COLLECTOR = 10


class ExpressDeviceCap(IntFlag):
    """Device capabilities."""

    EXTENDED_TAG = 1 << 5
    ROLE_BASED_ERROR = 1 << 15
    FLR = 1 << 28


class ExpressDeviceControl(IntFlag):
    """Device control."""

    INITIATE_FLR = 1 << 15


class PmCapability(Capability):
    """Power management capability."""

    capabilities = le16()
    control = le16(rw=True)
    bridge = u8()
    data = u8()


class MsiCapability(Capability):
    """MSI capability (3.0, 6.8.1), the part that every form has."""

    control = le16(rw=True)
    address = le32(rw=True)


class MsiControl(IntFlag):
    """MSI message control."""

    ENABLE = 1 << 0
    ADDRESS_64 = 1 << 7
    MASKABLE = 1 << 8


MSI_CAPABLE_SHIFT: Final = 1
MSI_CAPABLE_MASK: Final = 0x7
"""log2 of the vectors that the function asks for."""


class ExtendedCapability(Layout):
    """What every capability beyond the first 256 bytes begins with (PCIe 7.6.3)."""

    header = le32()

    @property
    def cap_id(self) -> int:
        """The capability's id."""
        return self.header & 0xFFFF

    @property
    def version(self) -> int:
        """Its version."""
        return self.header >> 16 & 0xF

    @property
    def next(self) -> int:
        """Where the next one is, 0 if there is none."""
        return self.header >> 20 & ~3
