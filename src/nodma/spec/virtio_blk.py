"""The block device (virtio 1.4, 5.2)."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from nodma.spec.layout import Layout, blob, le16, le32, le64, u8

SECTOR: Final = 512
"""Bytes of a sector, the unit of the protocol whatever the disk's block size."""
ID_BYTES: Final = 20
"""Bytes of the device ID string that GET_ID fetches."""


class BlkFeature(IntEnum):
    """Feature bits, by bit number (5.2.3)."""

    SIZE_MAX = 1
    SEG_MAX = 2
    GEOMETRY = 4
    RO = 5
    BLK_SIZE = 6
    FLUSH = 9
    TOPOLOGY = 10
    CONFIG_WCE = 11
    MQ = 12
    DISCARD = 13
    WRITE_ZEROES = 14
    LIFETIME = 15
    SECURE_ERASE = 16
    ZONED = 17

    @property
    def mask(self) -> int:
        """The feature as a mask."""
        return 1 << self.value


class BlkConfig(Layout):
    """struct virtio_blk_config (5.2.4), up to write_zeroes. Sectors are 512 bytes."""

    capacity = le64()
    size_max = le32()
    seg_max = le32()
    cylinders = le16()
    heads = u8()
    sectors = u8()
    blk_size = le32()
    physical_block_exp = u8()
    alignment_offset = u8()
    min_io_size = le16()
    opt_io_size = le32()
    writeback = u8()
    unused0 = u8()
    num_queues = le16()
    max_discard_sectors = le32()
    max_discard_seg = le32()
    discard_sector_alignment = le32()
    max_write_zeroes_sectors = le32()
    max_write_zeroes_seg = le32()
    write_zeroes_may_unmap = u8()
    unused1 = blob(3)


class BlkRequest(Layout):
    """The header of struct virtio_blk_req (5.2.6); data and a status byte follow."""

    type = le32()
    reserved = le32()
    sector = le64()


class BlkType(IntEnum):
    """Request types (5.2.6)."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8
    GET_LIFETIME = 10
    DISCARD = 11
    WRITE_ZEROES = 13
    SECURE_ERASE = 14


class BlkStatus(IntEnum):
    """Request results (5.2.6)."""

    OK = 0
    IOERR = 1
    UNSUPP = 2


class BlkRange(Layout):
    """struct virtio_blk_discard_write_zeroes (5.2.6); in sectors."""

    sector = le64()
    num_sectors = le32()
    flags = le32()


RANGE_UNMAP: Final = 1
"""BlkRange.flags: WRITE_ZEROES may deallocate."""
