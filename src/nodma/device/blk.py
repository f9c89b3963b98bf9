"""The block device (virtio 1.4, 5.2): data goes by preadv and pwritev between image and window."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING, ClassVar, Final

from nodma.builds import load
from nodma.device.base import Device, Queue
from nodma.device.image import Cache, Image
from nodma.errors import UsageError
from nodma.ring import DeviceRing, Request
from nodma.spec.virtio import DeviceType
from nodma.spec.virtio_blk import (
    ID_BYTES,
    RANGE_UNMAP,
    SECTOR,
    BlkConfig,
    BlkFeature,
    BlkRange,
    BlkStatus,
    BlkType,
)
from nodma.units import show_size

if TYPE_CHECKING:
    from nodma.device.blk_engine import BlockEngine
else:
    BlockEngine = load("nodma.device.blk_engine").BlockEngine

MAX_QUEUES: Final = 256
QUEUE_SIZE: Final = 256
_POOL_SHARE: Final = 4
"""One request takes at most this fraction of the pool, so that several are in flight in the smallest."""
_MIN_SEGMENT: Final = 4096
_MAX_SEGMENT: Final = 256 << 10  # what Linux's SWIOTLB maps at once
_MAX_SEGMENTS: Final = 126  # with header and status, a table of 128
_MAX_RANGES: Final = 8
_MAX_RANGE_SECTORS: Final = (256 << 20) // SECTOR  # what a slow file system zeroes while a VMM waits

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
        ]
        if image.cache is not Cache.WRITETHROUGH:
            offered.append(BlkFeature.FLUSH)
        offered += [BlkFeature.RO] if image.read_only else [BlkFeature.DISCARD, BlkFeature.WRITE_ZEROES]
        if queues > 1:
            offered.append(BlkFeature.MQ)
        self.features = sum(feature.mask for feature in offered)
        self._read_only = image.read_only
        self._size = image.size
        self._most = size_max * seg_max  # a longer request would keep the VMM waiting, and no driver makes one
        self._durable = False
        self._engines: list[BlockEngine] = []
        self._sync_failed = memoryview(bytearray(1))
        self._done: Counter[str] = Counter()
        self._counting = threading.Lock()

    def describe(self) -> str:
        """The image and its size."""
        return f"{self.image.path} ({show_size(self._size)}{', read-only' if self._read_only else ''})"

    def start(self, features: int) -> None:
        """A driver that did not take FLUSH may believe in a write-through cache (5.2.5.1): be one."""
        self._durable = not features & BlkFeature.FLUSH.mask
        for engine in self._engines:
            engine.durable = self._durable

    def make_engine(self, queue: Queue, ring: DeviceRing) -> BlockEngine:  # noqa: ARG002 - all queues are alike
        """Make the engine of a queue."""
        engine = BlockEngine(
            ring,
            self._handle_rare,
            self._sync_failed,
            fd=self.image.fd,
            buffered_fd=self.image.buffered_fd,
            size=self._size,
            most=self._most,
            read_only=self._read_only,
            cached=self.image.cache is not Cache.NONE,
        )
        engine.durable = self._durable
        self._engines.append(engine)
        return engine

    def reset(self) -> None:
        """Forget the paths, not what they counted."""
        for engine in self._engines:
            self._done.update(_counted(engine))
        self._engines.clear()

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
        names = (
            "reads", "bytes_read", "writes", "bytes_written", "flushes", "discards", "write_zeroes", "errors",
        )  # fmt: skip
        total = Counter(self._done)
        for engine in self._engines:
            total.update(_counted(engine))
        return {name: total[name] for name in names}

    def _handle_rare(self, kind: int, request: Request) -> int:
        """Handle a request that is rare; gives its status. A failing image raises OSError."""
        if kind == BlkType.GET_ID:
            return _OK if request.write(self._serial.ljust(ID_BYTES, b"\0")) else _IOERR
        if kind in (BlkType.DISCARD, BlkType.WRITE_ZEROES):
            return self._ranges(kind, request.read(_MAX_RANGES * BlkRange.size + 1))
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
        if self._durable:
            self.image.flush()
        with self._counting:
            self._done["discards" if kind == BlkType.DISCARD else "write_zeroes"] += 1
        return _OK


def _counted(engine: BlockEngine) -> dict[str, int]:
    """Count what an engine did."""
    return {
        "reads": engine.reads,
        "bytes_read": engine.bytes_read,
        "writes": engine.writes,
        "bytes_written": engine.bytes_written,
        "flushes": engine.flushes,
        "errors": engine.errors,
    }
