"""The block device (virtio 1.4, 5.2): data goes by preadv and pwritev between image and window."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
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

log = logging.getLogger(__name__)

MAX_QUEUES: Final = 256
QUEUE_SIZE: Final = 256
BLOCK_SIZES: Final = (512, 4096)
"""Bytes that a logical block can have."""
_POOL_SHARE: Final = 4
"""One request takes at most this fraction of the pool, so that several are in flight in the smallest."""
_MIN_SEGMENT: Final = 4096
_MAX_SEGMENT: Final = 256 << 10  # what Linux's SWIOTLB maps at once
_MAX_SEGMENTS: Final = 126  # with header and status, a table of 128
_MAX_RANGES: Final = 8
_MAX_RANGE_SECTORS: Final = (256 << 20) // SECTOR  # what a slow file system zeroes while a VMM waits

_OK, _IOERR, _UNSUPP = int(BlkStatus.OK), int(BlkStatus.IOERR), int(BlkStatus.UNSUPP)


def request_limits(pool: int) -> tuple[int, int]:
    """Return size_max (bytes) and seg_max for a pool of so many bytes.

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

    def __init__(
        self, image: Image, *, pool: int, queues: int = 1, serial: str | None = None, block_size: int = SECTOR
    ) -> None:
        """Raises UsageError for ``queues``, a ``serial`` or a ``block_size`` that no block device can have.

        ``serial`` is the image's own by default; ``block_size``, the logical block, is 512 or 4096 bytes.
        """
        super().__init__()
        if not 1 <= queues <= MAX_QUEUES:
            raise UsageError(f"invalid number of queues {queues}: expected 1 to {MAX_QUEUES}")
        serial = image.serial if serial is None else serial
        self._serial = serial.encode("ascii", "replace")
        if len(self._serial) > ID_BYTES or not serial.isascii():
            raise UsageError(f"invalid serial {serial!r}: expected up to {ID_BYTES} ASCII characters")
        if block_size not in BLOCK_SIZES:
            raise UsageError(f"invalid block size {block_size}: expected {' or '.join(map(str, BLOCK_SIZES))}")
        if image.size % block_size:
            raise UsageError(
                f"the image {image.path} has {image.size} bytes, expected a multiple of the block size {block_size}:"
                f" extend it with truncate -s %{block_size} {image.path}"
            )
        self.image = image
        self.queues = tuple(Queue(f"requests{i}", QUEUE_SIZE, "requests") for i in range(queues))
        size_max, seg_max = request_limits(pool)
        self._max_request = size_max * seg_max  # a longer one would keep the VMM waiting, and no driver makes one
        self._block_size = block_size
        self._read_only = image.read_only
        self._size = image.size
        self._has_cache = image.cache is not Cache.WRITETHROUGH
        self.config = self._make_config(size_max, seg_max)
        self.features = sum(feature.mask for feature in self._offered())
        self._durable = False
        self._features = 0
        self._engines: list[BlockEngine] = []
        self._done: Counter[str] = Counter()
        self._counting = threading.Lock()

    def _make_config(self, size_max: int, seg_max: int) -> BlkConfig:
        image, block = self.image, self._block_size
        physical = max(image.physical_block, block)
        optimal = self._max_request // physical * physical
        if 0 < image.optimal_io <= optimal and image.optimal_io % physical == 0:
            optimal = image.optimal_io
        return BlkConfig.new(
            capacity=image.size // SECTOR,
            size_max=size_max,
            seg_max=seg_max,
            blk_size=block,
            physical_block_exp=(physical // block).bit_length() - 1,
            min_io_size=min(max(image.min_io, physical) // block, 0xFFFF),
            opt_io_size=optimal // block,
            writeback=int(self._has_cache),
            num_queues=len(self.queues),
            max_discard_sectors=_MAX_RANGE_SECTORS,
            max_discard_seg=_MAX_RANGES,
            discard_sector_alignment=physical // SECTOR,
            max_write_zeroes_sectors=_MAX_RANGE_SECTORS,
            max_write_zeroes_seg=_MAX_RANGES,
            write_zeroes_may_unmap=1,
        )

    def _offered(self) -> list[BlkFeature]:
        offered = [BlkFeature.SIZE_MAX, BlkFeature.SEG_MAX, BlkFeature.BLK_SIZE, BlkFeature.TOPOLOGY]
        if self._has_cache:
            offered.append(BlkFeature.FLUSH)
        if self._read_only:
            offered.append(BlkFeature.RO)
        else:
            offered += [BlkFeature.DISCARD, BlkFeature.WRITE_ZEROES]
            if self._has_cache:
                offered.append(BlkFeature.CONFIG_WCE)
        if len(self.queues) > 1:
            offered.append(BlkFeature.MQ)
        return offered

    def describe(self) -> str:
        """The image and its size."""
        return f"{self.image.path} ({show_size(self._size)}{', read-only' if self._read_only else ''})"

    def start(self, features: int) -> None:
        """Begin to work. A driver that did not take FLUSH may believe in a write-through cache: be one (5.2.5.2)."""
        self._features = features
        if not features & BlkFeature.FLUSH.mask:
            self.config.writeback = 0
        elif not features & BlkFeature.CONFIG_WCE.mask:
            self.config.writeback = 1
        self._set_durable(not self.config.writeback)

    def config_written(self, offset: int, data: bytes) -> None:
        """Switch the write cache, where the driver wrote the byte ``writeback`` (5.2.5); the rest is read-only.

        What was written before a switch to write-through is synced at once, and nobody waits for that.
        """
        at = BlkConfig.writeback.offset - offset
        if not self.features & BlkFeature.CONFIG_WCE.mask or not 0 <= at < len(data):
            return
        self.config.writeback = int(bool(data[at]))
        if self._features & BlkFeature.CONFIG_WCE.mask and self._features & BlkFeature.FLUSH.mask:
            self._set_durable(not data[at])

    def _set_durable(self, durable: bool) -> None:
        if durable and not self._durable:
            self.image.begin_sync()
        self._durable = durable
        for engine in self._engines:
            engine.durable = durable

    def make_engine(self, queue: Queue, ring: DeviceRing) -> BlockEngine:  # noqa: ARG002 - all queues are alike
        """Make the engine of a queue."""
        engine = BlockEngine(
            ring,
            self._handle_rare,
            self._sync,
            self.image.lost,
            fd=self.image.fd,
            buffered_fd=self.image.buffered_fd,
            size=self._size,
            max_request=self._max_request,
            read_only=self._read_only,
            inline=self.image.cache is not Cache.NONE and self.image.can_decline_to_wait,
            in_memory=self.image.in_memory,
            name=f"image {self.image.path}",
        )
        engine.durable = self._durable
        self._engines.append(engine)
        return engine

    def reset(self) -> None:
        """Forget the engines, not what they counted, and what the driver made of the cache."""
        for engine in self._engines:
            self._done.update(_counted(engine))
        self._engines.clear()
        self._features = 0
        self._durable = False
        self.config.writeback = int(self._has_cache)

    def reload(self) -> None:
        """Serve the size that the image has now, if it has grown. Raises UsageError if it has shrunk."""
        if not self.image.grow():
            return
        self._size = self.image.size // self._block_size * self._block_size
        for engine in self._engines:
            engine.resize(self._size)
        self.config.capacity = self._size // SECTOR
        log.info("the image %s has grown to %s", self.image.path, show_size(self._size))
        self.config_changed()

    def drain(self) -> None:
        """Begin to sync the image: the next flush, or :meth:`close`, waits for it, and the next client does not."""
        self.image.begin_sync()

    def close(self) -> None:
        """Sync and close the image, for CLOSE_SECONDS at most; :attr:`unfinished` says what was not done."""
        if not self.image.close():
            self.unfinished = f"the image {self.image.path} was not synced: its disk does not answer"
        elif self.image.lost[0]:
            self.unfinished = f"the image {self.image.path} has lost what was written to it: its disk failed"

    def statistics(self) -> dict[str, int]:
        """Requests done, by type, and bytes moved between image and window."""
        names = (
            "reads", "bytes_read", "writes", "bytes_written", "flushes", "discards", "write_zeroes", "errors",
        )  # fmt: skip
        total = Counter(self._done)
        for engine in self._engines:
            total.update(_counted(engine))
        return {name: total[name] for name in names}

    def _sync(self, cancelled: Callable[[], bool]) -> None:
        self.image.sync(cancelled)

    def _handle_rare(self, kind: int, request: Request, cancelled: Callable[[], bool]) -> int:
        """Handle a request that is rare; return its status. A failing image raises OSError."""
        if kind == BlkType.GET_ID:
            return _OK if request.write(self._serial.ljust(ID_BYTES, b"\0")) else _IOERR
        if kind in (BlkType.DISCARD, BlkType.WRITE_ZEROES):
            return self._ranges(kind, request.read(_MAX_RANGES * BlkRange.size + 1), cancelled)
        return _UNSUPP

    def _ranges(self, kind: int, raw: bytes, cancelled: Callable[[], bool]) -> int:
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
            offset, length = sector * SECTOR, count * SECTOR
            if kind == BlkType.DISCARD:
                self.image.discard(offset, length, cancelled)
            else:
                self.image.write_zeroes(offset, length, unmap=bool(flags & RANGE_UNMAP), cancelled=cancelled)
        if self._durable:
            self.image.sync(cancelled)
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
