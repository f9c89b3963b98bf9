"""The header of configuration space (PCI Local Bus 3.0, 6.1), and what it addresses."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

from nodma.spec.layout import Layout, blob, le16, le32, u8

CONFIG_SIZE: Final = 256
"""Bytes of a conventional configuration space."""
EXTENDED_CONFIG_SIZE: Final = 4096
"""Bytes of a PCI Express configuration space."""
BAR_COUNT: Final = 6
BRIDGE_BAR_COUNT: Final = 2
DEVICES: Final = 32
"""Devices, or slots, that a bus has."""
FUNCTIONS: Final = 8
"""Functions that a device, in a slot, has at most."""
NO_DEVICE: Final = 0xFFFF
"""The vendor id that is read where nothing answers."""


class Type0Header(Layout):
    """The header of a function that is not a bridge (3.0, 6.1)."""

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
    MHZ_66 = 1 << 5
    UDF = 1 << 6
    FAST_BACK = 1 << 7
    PARITY = 1 << 8
    SIGNALLED_TARGET_ABORT = 1 << 11
    RECEIVED_TARGET_ABORT = 1 << 12
    RECEIVED_MASTER_ABORT = 1 << 13
    SYSTEM_ERROR = 1 << 14
    PARITY_DETECTED = 1 << 15


class HeaderType(IntEnum):
    """What follows the first 16 bytes of the header."""

    NORMAL = 0
    BRIDGE = 1
    CARDBUS = 2


class BaseClass(IntEnum):
    """What a function is, roughly (PCI Code and ID Assignment, 1)."""

    UNCLASSIFIED = 0x00
    MASS_STORAGE = 0x01
    NETWORK = 0x02
    DISPLAY = 0x03
    MULTIMEDIA = 0x04
    MEMORY = 0x05
    BRIDGE = 0x06
    COMMUNICATION = 0x07
    SYSTEM_PERIPHERAL = 0x08
    INPUT_DEVICE = 0x09
    DOCKING_STATION = 0x0A
    PROCESSOR = 0x0B
    SERIAL_BUS = 0x0C
    WIRELESS = 0x0D
    INTELLIGENT = 0x0E
    SATELLITE = 0x0F
    ENCRYPTION = 0x10
    SIGNAL_PROCESSING = 0x11
    ACCELERATOR = 0x12
    INSTRUMENTATION = 0x13
    UNASSIGNED = 0xFF


class BarFlag(IntFlag):
    """The low bits of a base address register (3.0, 6.2.5.1)."""

    IO = 1 << 0
    TYPE_64 = 1 << 2
    PREFETCH = 1 << 3


BAR_TYPE_MASK: Final = 0x6
BAR_MEM_MASK: Final = ~0xF & 0xFFFFFFFF
BAR_IO_MASK: Final = ~0x3 & 0xFFFFFFFF
EXPANSION_ROM: Final = 6
"""The expansion ROM's place after the BARs, in Linux's resource files and in vfio's regions."""
ROM_ENABLE: Final = 1
ROM_MASK: Final = ~0x7FF & 0xFFFFFFFF
HEADER_TYPE_MASK: Final = 0x7F
HEADER_MULTIFUNCTION: Final = 0x80
