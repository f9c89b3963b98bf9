"""The block device (virtio 1.4, 5.2): data goes by preadv and pwritev between image and window."""

from __future__ import annotations

import logging
from typing import ClassVar, Final

from nodma.device.base import Device, Queue
from nodma.device.image import Image
from nodma.errors import UsageError
from nodma.ring import Request
from nodma.sizes import show_size
from nodma.spec.virtio import DeviceType
from nodma.spec.virtio_blk import (
    ID_BYTES,
    RANGE_UNMAP,
    SECTOR,
    BlkConfig,
    BlkFeature,
    BlkRange,
    BlkRequest,
    BlkStatus,
    BlkType,
)

log = logging.getLogger(__name__)

MAX_QUEUES: Final = 256
QUEUE_SIZE: Final = 256
_POOL_SHARE: Final = 4
"""One request takes at most this fraction of the pool, so that several are in flight in the smallest."""
_MIN_SEGMENT: Final = 4096
_MAX_SEGMENT: Final = 256 << 10  # what Linux's SWIOTLB maps at once
_MAX_SEGMENTS: Final = 126  # with header and status, a table of 128
_MAX_RANGES: Final = 8
_MAX_RANGE_SECTORS: Final = (256 << 20) // SECTOR  # what a slow file system zeroes while a VMM waits

_HEADER = BlkRequest.codec
_HEADER_BYTES = BlkRequest.size
_IN, _OUT = int(BlkType.IN), int(BlkType.OUT)
_OK, _IOERR, _UNSUPP = int(BlkStatus.OK), int(BlkStatus.IOERR), int(BlkStatus.UNSUPP)


def request_limits(pool: int) -> tuple[int, int]:
    """Give size_max (bytes) and seg_max for a pool of so many bytes.

    Together they take no more than a quarter of the pool, twice as many segments as pages in one: a
    driver's segments are often single pages.
    """
    pages = max(1, pool // _POOL_SHARE // _MIN_SEGMENT)
    segments = 1 << min(pages.bit_length() - 1, (pages.bit_length() + 2) // 2)
    size = pool // _POOL_SHARE // segments
    return min(max(size, _MIN_SEGMENT), _MAX_SEGMENT), min(segments, _MAX_SEGMENTS)


class BlockDevice(Device):
    """A disk: ``image`` served on ``queues`` queues, its requests cut to fit a pool of ``pool`` bytes."""

    device_type: ClassVar[int] = DeviceType.BLOCK
    pci_class: ClassVar[tuple[int, int]] = (0x01, 0x80)
    Config = BlkConfig
    config: BlkConfig

    def __init__(self, image: Image, *, pool: int, queues: int = 1, serial: str = "") -> None:
        """Raises UsageError if ``queues`` or ``serial`` is nothing that a block device can have."""
        super().__init__()
        if not 1 <= queues <= MAX_QUEUES:
            raise UsageError(f"{queues} queues: a block device here has 1 to {MAX_QUEUES}")
        self._serial = serial.encode("ascii", "replace")
        if len(self._serial) > ID_BYTES or not serial.isascii():
            raise UsageError(f"the serial {serial!r} is not up to {ID_BYTES} ASCII characters")
        self.image = image
        self.queues = tuple(Queue(f"requests{i}", QUEUE_SIZE, "requests") for i in range(queues))
        size_max, seg_max = request_limits(pool)
        self.config = BlkConfig.new(
            capacity=image.size // SECTOR,
            size_max=size_max,
            seg_max=seg_max,
            blk_size=SECTOR,
            physical_block_exp=(image.physical_block // SECTOR).bit_length() - 1,
            min_io_size=min(image.physical_block // SECTOR, 0xFFFF),
            opt_io_size=size_max * seg_max // SECTOR,
            num_queues=queues,
            max_discard_sectors=_MAX_RANGE_SECTORS,
            max_discard_seg=_MAX_RANGES,
            discard_sector_alignment=max(1, image.physical_block // SECTOR),
            max_write_zeroes_sectors=_MAX_RANGE_SECTORS,
            max_write_zeroes_seg=_MAX_RANGES,
            write_zeroes_may_unmap=1,
        )
        offered = [
            BlkFeature.SIZE_MAX,
            BlkFeature.SEG_MAX,
            BlkFeature.BLK_SIZE,
            BlkFeature.TOPOLOGY,
            BlkFeature.FLUSH,
        ]
        offered += [BlkFeature.RO] if image.read_only else [BlkFeature.DISCARD, BlkFeature.WRITE_ZEROES]
        if queues > 1:
            offered.append(BlkFeature.MQ)
        self.features = sum(feature.mask for feature in offered)
        self._read_only = image.read_only
        self._size = image.size
        self._most = size_max * seg_max  # a longer request would keep the VMM waiting, and no driver makes one
        self._write_through = False
        self._reads = self._bytes_read = self._writes = self._bytes_written = 0
        self._flushes = self._discards = self._write_zeroes = self._errors = 0

    def describe(self) -> str:
        """The image and its size."""
        return f"{self.image.path} ({show_size(self._size)}{', read-only' if self._read_only else ''})"

    def start(self, features: int) -> None:
        """A driver that did not take FLUSH may believe in a write-through cache (5.2.5.1): be one."""
        self._write_through = not features & BlkFeature.FLUSH.mask

    def drain(self) -> None:
        """Sync the image."""
        if not self._read_only and self.image.fd >= 0:
            self.image.flush()

    def close(self) -> None:
        """Sync and close the image."""
        self.drain()
        self.image.close()

    def statistics(self) -> dict[str, int]:
        """Requests done, by type, and bytes moved between image and window."""
        return {
            "reads": self._reads,
            "bytes_read": self._bytes_read,
            "writes": self._writes,
            "bytes_written": self._bytes_written,
            "flushes": self._flushes,
            "discards": self._discards,
            "write_zeroes": self._write_zeroes,
            "errors": self._errors,
        }

    def requests(self, request: Request) -> None:
        """Do one request; whatever is wrong with it or with the image ends in its status."""
        status = request.take_tail(1)
        if status is None:  # nowhere to put a status: all the driver gets is the chain back
            self._errors += 1
            return
        result = _IOERR
        try:
            header = request.read(_HEADER_BYTES)
            if len(header) == _HEADER_BYTES:
                kind, _, sector = _HEADER.unpack(header)
                if kind == _IN:
                    result = self._read(sector * SECTOR, request)
                elif kind == _OUT:
                    result = self._write(sector * SECTOR, request.readable)
                else:
                    result = self._other(kind, request)
        except OSError as error:
            log.warning("%s: %s", self.image.path, error)
        status[0] = result
        if result == _OK:
            request.written += 1  # the status; behind data that was not written it does not count (2.7.8.2)
        else:
            self._errors += 1

    def _read(self, offset: int, request: Request) -> int:
        data = request.writable
        length = len(data[0]) if len(data) == 1 else sum(map(len, data))
        if not 0 < length <= self._size - offset or length % SECTOR or length > self._most:
            return _IOERR
        if not self.image.read(data, offset, length):
            return _IOERR
        request.written = length
        self._reads += 1
        self._bytes_read += length
        return _OK

    def _write(self, offset: int, data: list[memoryview]) -> int:
        length = sum(map(len, data))
        if self._read_only or not 0 < length <= self._size - offset or length % SECTOR or length > self._most:
            return _IOERR
        if not self.image.write(data, offset, length):
            return _IOERR
        if self._write_through:
            self.image.flush()
        self._writes += 1
        self._bytes_written += length
        return _OK

    def _other(self, kind: int, request: Request) -> int:
        if kind == BlkType.FLUSH:
            self.drain()
            self._flushes += 1
            return _OK
        if kind == BlkType.GET_ID:
            return _OK if request.write(self._serial.ljust(ID_BYTES, b"\0")) else _IOERR
        if kind in (BlkType.DISCARD, BlkType.WRITE_ZEROES):
            return self._ranges(kind, request.read())
        return _UNSUPP

    def _ranges(self, kind: int, raw: bytes) -> int:
        """Discard or zero the ranges in ``raw``; all are checked before the first is touched (5.2.6.2)."""
        if self._read_only or not raw or len(raw) % BlkRange.size or len(raw) > _MAX_RANGES * BlkRange.size:
            return _IOERR
        ranges = list(BlkRange.codec.iter_unpack(raw))
        allowed = RANGE_UNMAP if kind == BlkType.WRITE_ZEROES else 0
        if any(flags & ~allowed for _, _, flags in ranges):
            return _UNSUPP
        for sector, count, _ in ranges:
            if not 0 < count <= min(_MAX_RANGE_SECTORS, self._size // SECTOR - sector):
                return _IOERR
        for sector, count, flags in ranges:
            if kind == BlkType.DISCARD:
                self.image.discard(sector * SECTOR, count * SECTOR)
            else:
                self.image.write_zeroes(sector * SECTOR, count * SECTOR, unmap=bool(flags & RANGE_UNMAP))
        if self._write_through:
            self.image.flush()
        if kind == BlkType.DISCARD:
            self._discards += 1
        else:
            self._write_zeroes += 1
        return _OK
