"""Interrupts by message: MSI (PCI Local Bus 3.0, 6.8.1) and MSI-X (6.8.2)."""

from __future__ import annotations

from enum import IntFlag
from typing import Final

from nodma.spec.layout import Layout, le16, le32
from nodma.spec.pci.capability import Capability


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
MSIX_PENDING_BITS: Final = 64
"""Pending bits come in words of so many, one bit a vector."""


class MsiCapability(Capability):
    """MSI capability (3.0, 6.8.1), the part that every form has."""

    control = le16(rw=True)
    address = le32(rw=True)


class MsiCapability32(MsiCapability):
    """The form with 32-bit addresses; the last two only if it is maskable."""

    data = le16(rw=True)
    reserved = le16()
    masked = le32(rw=True)
    pending = le32()


class MsiCapability64(MsiCapability):
    """The form with 64-bit addresses; the last two only if it is maskable."""

    address_high = le32(rw=True)
    data = le16(rw=True)
    reserved = le16()
    masked = le32(rw=True)
    pending = le32()


class MsiControl(IntFlag):
    """MSI message control."""

    ENABLE = 1 << 0
    ADDRESS_64 = 1 << 7
    MASKABLE = 1 << 8


MSI_CAPABLE_SHIFT: Final = 1
MSI_CAPABLE_MASK: Final = 0x7
"""log2 of the vectors that the function asks for."""
MSI_ENABLED_SHIFT: Final = 4
"""Likewise, of those that it was given; as wide as MSI_CAPABLE_MASK."""
