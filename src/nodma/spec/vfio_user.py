"""The vfio-user protocol 0.0, and what of VFIO it carries.

Sources: docs/interop/vfio-user.rst in QEMU, linux/vfio.h; where text and implementations differ (the
number of DEVICE_RESET, UNMAP_ALL), what QEMU and libvfio-user send is what stands here.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

from nodma.spec.layout import Layout, le16, le32, le64

MAJOR: Final = 0
MINOR: Final = 0
DEFAULT_MAX_FDS: Final = 1
DEFAULT_MAX_TRANSFER: Final = 1 << 20
"""Bytes of one REGION_READ or REGION_WRITE, where the peer names no other limit."""
DEFAULT_MAX_DMA_MAPS: Final = 65535
DEFAULT_PAGE_SIZES: Final = 4096


class Cmd(IntEnum):
    """Message commands."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    DEVICE_RESET = 13
    REGION_WRITE_MULTI = 15
    DEVICE_FEATURE = 16
    MIG_DATA_READ = 17
    MIG_DATA_WRITE = 18


class Header(Layout):
    """What every message begins with; ``msg_size`` counts bytes, the header included."""

    msg_id = le16()
    command = le16()
    msg_size = le32()
    flags = le32()
    error = le32()


TYPE_MASK: Final = 0xF
TYPE_COMMAND: Final = 0
TYPE_REPLY: Final = 1


class MsgFlag(IntFlag):
    """Header flags beside the type."""

    NO_REPLY = 1 << 4
    ERROR = 1 << 5


class Version(Layout):
    """VERSION; JSON with a terminating NUL may follow."""

    major = le16()
    minor = le16()


class DmaMap(Layout):
    """DMA_MAP; addresses and sizes in bytes."""

    argsz = le32()
    flags = le32()
    offset = le64()
    address = le64()
    size_bytes = le64()


class DmaFlag(IntFlag):
    """DMA_MAP flags."""

    READ = 1 << 0
    WRITE = 1 << 1


class DmaUnmap(Layout):
    """DMA_UNMAP."""

    argsz = le32()
    flags = le32()
    address = le64()
    size_bytes = le64()


class UnmapFlag(IntFlag):
    """DMA_UNMAP flags."""

    GET_DIRTY_BITMAP = 1 << 0
    ALL = 1 << 1


class DeviceInfo(Layout):
    """DEVICE_GET_INFO."""

    argsz = le32()
    flags = le32()
    num_regions = le32()
    num_irqs = le32()


class DeviceFlag(IntFlag):
    """DEVICE_GET_INFO flags."""

    RESET = 1 << 0
    PCI = 1 << 1


class RegionInfo(Layout):
    """DEVICE_GET_REGION_INFO (struct vfio_region_info)."""

    argsz = le32()
    flags = le32()
    index = le32()
    cap_offset = le32()
    size_bytes = le64()
    offset = le64()


class RegionFlag(IntFlag):
    """Region flags."""

    READ = 1 << 0
    WRITE = 1 << 1
    MMAP = 1 << 2
    CAPS = 1 << 3


class RegionCap(Layout):
    """struct vfio_info_cap_header."""

    id = le16()
    version = le16()
    next = le32()


class SparseMmap(RegionCap):
    """struct vfio_region_info_cap_sparse_mmap, before its areas."""

    nr_areas = le32()
    reserved = le32()


class SparseArea(Layout):
    """struct vfio_region_sparse_mmap_area, in bytes."""

    offset = le64()
    length = le64()


REGION_CAP_SPARSE_MMAP: Final = 1


class RegionIoFds(Layout):
    """DEVICE_GET_REGION_IO_FDS; in the reply its sub-regions follow, and ``argsz`` counts them too."""

    argsz = le32()
    flags = le32()
    index = le32()
    count = le32()


class SubRegionIoFd(Layout):
    """A sub-region, in bytes, and which of the reply's descriptors is written to in place of it."""

    offset = le64()
    size_bytes = le64()
    fd_index = le32()
    type = le32()
    flags = le32()
    padding = le32()
    datamatch = le64()


class IoFdType(IntEnum):
    """What such a descriptor is."""

    IOEVENTFD = 0
    IOREGIONFD = 1


class Region(IntEnum):
    """PCI region indexes (linux/vfio.h)."""

    BAR0 = 0
    BAR1 = 1
    BAR2 = 2
    BAR3 = 3
    BAR4 = 4
    BAR5 = 5
    ROM = 6
    CONFIG = 7
    VGA = 8


class IrqInfo(Layout):
    """DEVICE_GET_IRQ_INFO (struct vfio_irq_info)."""

    argsz = le32()
    flags = le32()
    index = le32()
    count = le32()


class IrqFlag(IntFlag):
    """IRQ info flags."""

    EVENTFD = 1 << 0
    MASKABLE = 1 << 1
    AUTOMASKED = 1 << 2
    NORESIZE = 1 << 3


class Irq(IntEnum):
    """PCI IRQ indexes (linux/vfio.h)."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERR = 3
    REQ = 4


class IrqSet(Layout):
    """DEVICE_SET_IRQS (struct vfio_irq_set); booleans or descriptors follow."""

    argsz = le32()
    flags = le32()
    index = le32()
    start = le32()
    count = le32()


class IrqSetFlag(IntFlag):
    """DEVICE_SET_IRQS: one kind of data, one action."""

    DATA_NONE = 1 << 0
    DATA_BOOL = 1 << 1
    DATA_EVENTFD = 1 << 2
    ACTION_MASK = 1 << 3
    ACTION_UNMASK = 1 << 4
    ACTION_TRIGGER = 1 << 5


class RegionAccess(Layout):
    """REGION_READ and REGION_WRITE; data follows."""

    offset = le64()
    region = le32()
    count = le32()


class WriteMulti(Layout):
    """REGION_WRITE_MULTI, before its writes."""

    count = le64()


class MultiWrite(RegionAccess):
    """One write of REGION_WRITE_MULTI: at most 8 bytes."""

    data = le64()
