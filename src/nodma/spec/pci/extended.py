"""Extended capabilities (PCI Express 6.0, 7.6)."""

from __future__ import annotations

from enum import IntEnum

from nodma.spec.layout import Layout, le32


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


class ExtCapId(IntEnum):
    """Extended capability ids."""

    NULL = 0x00
    AER = 0x01
    VIRTUAL_CHANNEL = 0x02
    SERIAL_NUMBER = 0x03
    POWER_BUDGET = 0x04
    VENDOR = 0x0B
    ACS = 0x0D
    ARI = 0x0E
    ATS = 0x0F
    SR_IOV = 0x10
    MULTICAST = 0x12
    PAGE_REQUEST = 0x13
    RESIZABLE_BAR = 0x15
    DYNAMIC_POWER = 0x16
    TPH = 0x17
    LTR = 0x18
    SECONDARY_EXPRESS = 0x19
    PASID = 0x1B
    DPC = 0x1D
    L1_SUBSTATES = 0x1E
    PTM = 0x1F
    DESIGNATED_VENDOR = 0x23
    VF_RESIZABLE_BAR = 0x24
    DATA_LINK_FEATURE = 0x25
    PHYSICAL_16GT = 0x26
    LANE_MARGINING = 0x27
    PHYSICAL_32GT = 0x2A
    DOE = 0x2E
    IDE = 0x30


class SerialNumberCapability(ExtendedCapability):
    """Device serial number (PCIe 7.9.3)."""

    low = le32()
    high = le32()
