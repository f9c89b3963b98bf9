"""The PCI Express capability (PCI Express 6.0, 7.5.3)."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

from nodma.spec.layout import le16, le32
from nodma.spec.pci.capability import Capability


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
EXPRESS_MESSAGE_SHIFT: Final = 9
EXPRESS_MESSAGE_MASK: Final = 0x1F
"""In ``flags``: which MSI or MSI-X vector the capability's own interrupts use."""
EXPRESS_PAYLOAD_MASK: Final = 0x7
EXPRESS_PAYLOAD_UNIT: Final = 128
"""Bytes that a payload or read request field of 0 stands for; each step doubles them."""
EXPRESS_CONTROL_PAYLOAD_SHIFT: Final = 5
EXPRESS_CONTROL_READ_REQUEST_SHIFT: Final = 12
LINK_SPEED_MASK: Final = 0xF
LINK_WIDTH_SHIFT: Final = 4
LINK_WIDTH_MASK: Final = 0x3F
LINK_SPEEDS: Final = {1: "2.5GT/s", 2: "5GT/s", 3: "8GT/s", 4: "16GT/s", 5: "32GT/s", 6: "64GT/s"}


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

    CORRECTABLE = 1 << 0
    NON_FATAL = 1 << 1
    FATAL = 1 << 2
    UNSUPPORTED_REQUEST = 1 << 3
    RELAXED_ORDERING = 1 << 4
    EXTENDED_TAG = 1 << 8
    NO_SNOOP = 1 << 11
    INITIATE_FLR = 1 << 15


class ExpressDeviceStatus(IntFlag):
    """Device status."""

    CORRECTABLE = 1 << 0
    NON_FATAL = 1 << 1
    FATAL = 1 << 2
    UNSUPPORTED_REQUEST = 1 << 3
    AUX_POWER = 1 << 4
    PENDING = 1 << 5
