"""Capabilities: what each begins with, their ids, and those with a few fields."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

from nodma.spec.layout import Layout, u8

FIRST_CAPABILITY: Final = 0x40
"""Capabilities lie after the header, 4-byte aligned."""
CAPABILITY_POINTER_MASK: Final = ~0x3
"""The low bits of a pointer to a capability are reserved, and masked off."""


class CapId(IntEnum):
    """Capability ids."""

    PM = 0x01
    AGP = 0x02
    VPD = 0x03
    SLOT = 0x04
    MSI = 0x05
    HOT_SWAP = 0x06
    PCIX = 0x07
    HYPERTRANSPORT = 0x08
    VENDOR = 0x09
    DEBUG_PORT = 0x0A
    RESOURCE_CONTROL = 0x0B
    HOT_PLUG = 0x0C
    BRIDGE_SSID = 0x0D
    AGP8X = 0x0E
    SECURE = 0x0F
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


class AfCapability(Capability):
    """Advanced features capability (Advanced Capabilities for Conventional PCI)."""

    length = u8()
    features = u8()
    control = u8()
    status = u8()


class AfFeature(IntFlag):
    """Advanced features: which there are."""

    TRANSACTIONS_PENDING = 1 << 0
    FLR = 1 << 1


class AfStatus(IntFlag):
    """Advanced features: status."""

    TRANSACTIONS_PENDING = 1 << 0
