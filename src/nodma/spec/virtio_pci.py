"""Virtio over PCI (virtio 1.4, 4.1)."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

from nodma.spec.layout import Layout, blob, le16, le32, le64, u8
from nodma.spec.pci import VendorCapability

VIRTIO_VENDOR: Final = 0x1AF4
MODERN_DEVICE_BASE: Final = 0x1040
"""A modern device's PCI device id is this plus its device type (4.1.2)."""
TRANSITIONAL_DEVICES: Final = range(0x1000, MODERN_DEVICE_BASE)
VIRTIO_DEVICES: Final = range(0x1000, 0x1080)
"""The vendor's device ids that are virtio's (4.1.2); it has others, ivshmem for one."""
DEVICE_TYPES: Final = range(1, VIRTIO_DEVICES.stop - MODERN_DEVICE_BASE)
"""The device types that have a PCI device id; 0 is reserved (4.1.2, chapter 5)."""
NO_VECTOR: Final = 0xFFFF
"""VIRTIO_MSI_NO_VECTOR (4.1.5.1.2)."""


class CfgType(IntEnum):
    """Which structure a virtio capability describes (4.1.4)."""

    COMMON = 1
    NOTIFY = 2
    ISR = 3
    DEVICE = 4
    PCI = 5
    SHARED_MEMORY = 8
    VENDOR = 9
    SWIOTLB = 10  # RFC of 2 April 2025


class VirtioPciCap(VendorCapability):
    """struct virtio_pci_cap (4.1.4); offset and length in bytes."""

    cfg_type = u8()
    bar = u8(rw=True)
    id = u8()
    padding = blob(2)
    offset = le32(rw=True)
    length = le32(rw=True)


class VirtioPciCap64(VirtioPciCap):
    """struct virtio_pci_cap64 (4.1.4), for shared memory."""

    offset_hi = le32()
    length_hi = le32()


class VirtioPciNotifyCap(VirtioPciCap):
    """struct virtio_pci_notify_cap (4.1.4.4)."""

    notify_off_multiplier = le32()


class VirtioPciCfgCap(VirtioPciCap):
    """struct virtio_pci_cfg_cap (4.1.4.9): a window of 1, 2 or 4 bytes into a BAR."""

    pci_cfg_data = blob(4, rw=True)


class SharedSwiotlbCap(VirtioPciCap):
    """Capability 10 with the sharing extension: whose BAR it is, 0xff meaning "self"."""

    device = u8(0xFF)
    function = u8(0xFF)
    padding2 = blob(2)


class VirtioPciVendorCap(VendorCapability):
    """struct virtio_pci_vndr_data (4.1.4.8), the fixed part."""

    cfg_type = u8()
    vendor_id = le16()


class CommonCfg(Layout):
    """struct virtio_pci_common_cfg (4.1.4.3). The addresses are bytes, the sizes queue entries."""

    device_feature_select = le32(rw=True)
    device_feature = le32()
    driver_feature_select = le32(rw=True)
    driver_feature = le32(rw=True)
    config_msix_vector = le16(rw=True)
    num_queues = le16()
    device_status = u8(rw=True)
    config_generation = u8()
    queue_select = le16(rw=True)
    queue_size = le16(rw=True)
    queue_msix_vector = le16(rw=True)
    queue_enable = le16(rw=True)
    queue_notify_off = le16()
    queue_desc = le64(rw=True)
    queue_driver = le64(rw=True)
    queue_device = le64(rw=True)
    queue_notif_config_data = le16()
    queue_reset = le16(rw=True)
    admin_queue_index = le16()
    admin_queue_num = le16()


class Isr(IntFlag):
    """ISR status (4.1.4.5)."""

    QUEUE = 1
    CONFIG = 2
