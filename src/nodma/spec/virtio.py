"""Virtio itself: features, status, split virtqueues (virtio 1.4, chapters 2, 3 and 6)."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

from nodma.spec import dmb
from nodma.spec.layout import Layout, le16, le32, le64


class DeviceType(IntEnum):
    """The device types that nodma names (chapter 5)."""

    NET = 1
    BLOCK = 2
    CONSOLE = 3
    ENTROPY = 4
    BALLOON = 5
    SCSI = 8
    NINE_P = 9
    GPU = 16
    INPUT = 18
    VSOCK = 19
    CRYPTO = 20
    IOMMU = 23
    MEM = 24
    SOUND = 25
    FS = 26
    PMEM = 27
    RPMB = 28


class Status(IntFlag):
    """Device status (2.1)."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    DEVICE_NEEDS_RESET = 64
    FAILED = 128


class Feature(IntEnum):
    """Feature bits of no particular device type, by bit number (chapter 6)."""

    SWIOTLB = 27  # RFC of 2 April 2025; was the legacy ANY_LAYOUT
    INDIRECT_DESC = 28
    EVENT_IDX = 29
    VERSION_1 = 32
    ACCESS_PLATFORM = 33
    RING_PACKED = 34
    IN_ORDER = 35
    ORDER_PLATFORM = 36
    SR_IOV = 37
    NOTIFICATION_DATA = 38
    NOTIF_CONFIG_DATA = 39
    RING_RESET = 40
    ADMIN_VQ = 41
    DMB = dmb.FEATURE_BIT

    @property
    def mask(self) -> int:
        """The feature as a mask."""
        return 1 << self.value


FEATURE_BITS: Final = 64
"""Bits that any feature word here has room for."""
_DEVICE_TYPE_BITS: Final = (range(24), range(50, FEATURE_BITS))
DEVICE_TYPE_FEATURES: Final = sum(1 << bit for bits in _DEVICE_TYPE_BITS for bit in bits)
"""The feature bits that are a device type's to define, as a mask; the others are virtio's own, or reserved (2.2)."""


class Descriptor(Layout):
    """struct virtq_desc (2.7.5): ``addr`` is an address as the profile says, ``len`` in bytes."""

    addr = le64()
    len = le32()
    flags = le16()
    next = le16()


class DescFlag(IntFlag):
    """Descriptor flags (2.7.5)."""

    NEXT = 1
    WRITE = 2
    INDIRECT = 4


class AvailHeader(Layout):
    """The head of struct virtq_avail (2.7.6); le16 ring entries and used_event follow."""

    flags = le16()
    idx = le16()


class UsedHeader(Layout):
    """The head of struct virtq_used (2.7.8); the elements and avail_event follow."""

    flags = le16()
    idx = le16()


class UsedElem(Layout):
    """struct virtq_used_elem (2.7.8): head of the chain, bytes that the device wrote into it."""

    id = le32()
    len = le32()


AVAIL_NO_INTERRUPT: Final = 1
USED_NO_NOTIFY: Final = 1
DESC_ALIGN: Final = 16
AVAIL_ALIGN: Final = 2
USED_ALIGN: Final = 4
MAX_QUEUE_SIZE: Final = 32768


def desc_table_bytes(queue_size: int) -> int:
    """Bytes of a descriptor table (2.7)."""
    return Descriptor.size * queue_size


def avail_ring_bytes(queue_size: int) -> int:
    """Bytes of an available ring, used_event included (2.7)."""
    return AvailHeader.size + 2 * queue_size + 2


def used_ring_bytes(queue_size: int) -> int:
    """Bytes of a used ring, avail_event included (2.7)."""
    return UsedHeader.size + UsedElem.size * queue_size + 2
