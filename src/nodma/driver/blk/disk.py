"""A block device for Python callers, over a virtio-pci device with restricted DMA."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Final, Self

from nodma.driver.blk.limits import BESIDE_DATA, POOL_SHARE, Limits, queue_entries
from nodma.driver.blk.requests import (
    CONFIG_VECTOR,
    QUEUE_VECTOR,
    REQUEST_SECONDS,
    PendingRequest,
    RequestQueue,
    Requests,
    parts_of,
)
from nodma.driver.blk.zero_copy import ZeroCopy
from nodma.driver.bus import PciBus
from nodma.driver.sysfs_bus import SysfsBus
from nodma.driver.vfio_user_bus import VfioUserBus
from nodma.driver.virtio import VirtioPci
from nodma.errors import ProbeError, UsageError
from nodma.pci.sysfs import full_address
from nodma.spec.virtio import DeviceType, Feature
from nodma.spec.virtio_blk import (
    ID_BYTES,
    RANGE_UNMAP,
    SECTOR,
    BlkConfig,
    BlkFeature,
    BlkRange,
    BlkType,
)
from nodma.spec.virtio_pci import MODERN_DEVICE_BASE, NO_VECTOR
from nodma.window import SLOT, BouncePool, Direction, Mapping, PoolStats, ReservedPool

_WANTED: Final = sum(
    feature.mask
    for feature in (
        BlkFeature.SIZE_MAX,
        BlkFeature.SEG_MAX,
        BlkFeature.RO,
        BlkFeature.BLK_SIZE,
        BlkFeature.FLUSH,
        BlkFeature.TOPOLOGY,
        BlkFeature.CONFIG_WCE,
        BlkFeature.MQ,
        BlkFeature.DISCARD,
        BlkFeature.WRITE_ZEROES,
    )
)

ReadBuffer = bytes | bytearray | memoryview
WriteBuffer = bytearray | memoryview


class BlockDisk(ZeroCopy):
    """The disk behind a virtio-blk device: bytes at offsets, several requests in flight.

    ``polling`` spins for completions, else the driver sleeps until an interrupt. A device that returns none of its
    requests for ``timeout`` seconds has failed. One thread at a time.
    Methods raise OSError (EIO, ENOTSUP, EROFS) for what the device refuses, and DeviceFailed or
    Disconnected once there is no working device.
    """

    def __init__(
        self,
        bus: PciBus,
        *,
        queues: int = 1,
        depth: int = 128,
        polling: bool = False,
        timeout: float = REQUEST_SECONDS,
    ) -> None:
        """Probe, negotiate, set up. Owns ``bus`` from here on. Raises ProbeError if it is not such a disk."""
        self.device = VirtioPci(bus)
        self.timeout = timeout
        try:
            self._set_up(queues, depth, polling)
        except BaseException:
            self.device.close()
            raise

    def _set_up(self, queues: int, depth: int, polling: bool) -> None:
        device = self.device
        if device.space.header.device_id != MODERN_DEVICE_BASE + DeviceType.BLOCK:
            raise ProbeError(f"device {device.space.header.device_id:#06x} is not a block device")
        features = self.features = device.negotiate(_WANTED)
        config = self.config = device.device_config(BlkConfig)
        self.size = config.capacity * SECTOR
        """Bytes of the disk."""
        self.read_only = bool(features & BlkFeature.RO.mask)
        self.polling = polling
        eventfds = [] if polling else device.bus.enable_msix(2)
        device.set_config_vector(NO_VECTOR if polling else CONFIG_VECTOR)
        vector = NO_VECTOR if polling else QUEUE_VECTOR

        limits = Limits.read(config, features)
        count = min(max(1, queues), limits.queues)
        indirect = bool(features & Feature.INDIRECT_DESC.mask)
        parts = limits.segments + BESIDE_DATA if indirect else 0
        entries = queue_entries(depth, count, parts, limit=device.queue_limit(0), room=device.free[1])
        self._segments = limits.segments if indirect else min(limits.segments, entries - BESIDE_DATA)
        request_queues = [RequestQueue(device, index, entries, vector, parts) for index in range(count)]
        self._requests = Requests(device, request_queues, eventfds, timeout=self.timeout, read_only=self.read_only)
        self.pool = self._requests.pool = self._make_pool()
        most = self.pool.stats.slots * SLOT // POOL_SHARE
        self.segment = min(self.pool.max_mapping, limits.size_max, most) // SECTOR * SECTOR
        """Bytes that one part of a request has at most."""
        self.max_request = min(self.segment * self._segments, most // SECTOR * SECTOR)
        """Bytes that one request moves at most: never more than a quarter of the pool."""
        device.start()

    def _make_pool(self) -> BouncePool | ReservedPool:
        device = self.device
        if device.common is None:
            return BouncePool(device.window, *device.free, reclaim=self._requests.make_progress)
        return ReservedPool(
            BouncePool(device.window, *device.free), device.common, reclaim=self._requests.make_progress
        )

    @property
    def feature_names(self) -> list[str]:
        """The features that were accepted, by name, in the order of their bits."""
        names = {int(bit): bit.name for kind in (BlkFeature, Feature) for bit in kind}
        return [str(name) for bit, name in sorted(names.items()) if self.features >> bit & 1]

    @property
    def serial(self) -> str:
        """The device ID string (GET_ID)."""
        raw = bytearray(ID_BYTES)
        mappings = self._map_back(ID_BYTES)
        pending = PendingRequest(mappings, memoryview(raw), min_written=len(raw) + 1)
        self._requests.finish([self._requests.submit(BlkType.GET_ID, 0, (), parts_of(mappings), pending)])
        return raw.rstrip(b"\0").decode("ascii", "replace")

    # Like a file

    def pread(self, length: int, offset: int) -> bytes:
        """Read up to ``length`` bytes from ``offset`` on; fewer only at the disk's end."""
        buffer = bytearray(max(0, min(length, self.size - offset)))
        if buffer:
            self.readinto(buffer, offset)
        return bytes(buffer)

    def readinto(self, buffer: WriteBuffer, offset: int) -> None:
        """Fill ``buffer`` from ``offset`` on. Raises UsageError if that is not all inside the disk."""
        view = memoryview(buffer).cast("B")
        begin, end = self._sectors(offset, len(view))
        aligned = begin == offset and end == offset + len(view)
        whole = view if aligned else memoryview(bytearray(end - begin))
        self._requests.finish(
            [
                self.submit_read(begin + at, whole[at : at + self.max_request])
                for at in range(0, len(whole), self.max_request)
            ]
        )
        if not aligned:
            view[:] = whole[offset - begin : offset - begin + len(view)]

    def pwrite(self, data: ReadBuffer, offset: int) -> int:
        """Write ``data`` at ``offset``; returns its length. What shares a sector with it is read and kept."""
        view = memoryview(data).cast("B")
        begin, end = self._sectors(offset, len(view))
        if begin != offset or end != offset + len(view):
            whole = bytearray(self.pread(end - begin, begin))
            whole[offset - begin : offset - begin + len(view)] = view
            view, offset = memoryview(whole), begin
        self._requests.finish(
            [
                self.submit_write(offset + at, view[at : at + self.max_request])
                for at in range(0, len(view), self.max_request)
            ]
        )
        return len(data)

    @property
    def write_cache(self) -> bool:
        """Whether what is written is durable only after a :meth:`flush` (5.2.5.2).

        Setting it switches the device's cache. Raises UsageError where the device does not offer that (CONFIG_WCE).
        """
        if self.features & BlkFeature.CONFIG_WCE.mask:
            return bool(self.device.device_config(BlkConfig).writeback)
        return bool(self.features & BlkFeature.FLUSH.mask)

    @write_cache.setter
    def write_cache(self, on: bool) -> None:
        if not self.features & BlkFeature.CONFIG_WCE.mask:
            raise UsageError("the device does not let its driver switch the write cache (VIRTIO_BLK_F_CONFIG_WCE)")
        self.device.write_device_config(BlkConfig.writeback, int(on))

    def reload_size(self) -> int:
        """Read the disk's size anew, in bytes: an image may have grown since it was opened."""
        self.size = self.device.device_config(BlkConfig).capacity * SECTOR
        return self.size

    def flush(self) -> None:
        """Make all that was written durable."""
        if self.features & BlkFeature.FLUSH.mask:
            self._requests.finish([self._requests.submit(BlkType.FLUSH, 0, (), (), PendingRequest(()))])

    def discard(self, offset: int, length: int) -> None:
        """Tell the device that a range of whole sectors is no longer needed."""
        self._range(BlkFeature.DISCARD, BlkType.DISCARD, offset, length, 0)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """Make a range of whole sectors read as zeros, deallocated if the device can."""
        self._range(BlkFeature.WRITE_ZEROES, BlkType.WRITE_ZEROES, offset, length, RANGE_UNMAP if unmap else 0)

    # Requests in flight

    def submit_read(self, offset: int, into: WriteBuffer) -> PendingRequest:
        """Begin to read whole sectors, at most :attr:`max_request` bytes, into a buffer."""
        length = len(into)
        mappings = self._map_back(length)
        return self._requests.submit(
            BlkType.IN,
            offset // SECTOR,
            (),
            parts_of(mappings),
            PendingRequest(mappings, memoryview(into), min_written=length + 1),
        )

    def submit_write(self, offset: int, data: ReadBuffer) -> PendingRequest:
        """Begin to write whole sectors, at most :attr:`max_request` bytes; ``data`` is copied at once."""
        segment = self.segment
        mappings = [
            self.pool.map(data[at : at + segment] if len(data) > segment else data, Direction.TO_DEVICE)
            for at in range(0, len(data), segment)
        ]
        return self._requests.submit(BlkType.OUT, offset // SECTOR, parts_of(mappings), (), PendingRequest(mappings))

    def kick(self) -> None:
        """Let the device see what was submitted; a request is not on its way before."""
        self._requests.kick()

    def reap(self) -> list[PendingRequest]:
        """Return what is done, without waiting. Each request is handed out once, here or by :meth:`wait`."""
        return self._requests.reap()

    def wait(self) -> list[PendingRequest]:
        """Send off what was submitted, and return what is done, waiting for one if there is none.

        Raises DeviceFailed if the device needs a reset, or returns none in time.
        """
        return self._requests.wait()

    def check(self, pending: PendingRequest) -> None:
        """Raise OSError if a request that is done failed."""
        self._requests.check(pending)

    @property
    def in_flight(self) -> int:
        """Requests that the device has."""
        return self._requests.in_flight

    def close(self) -> None:
        """Reset the device and close it. Requests in flight are lost."""
        self._requests.close()
        self.device.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def statistics(self) -> PoolStats:
        """What went through the pool."""
        return self.pool.stats

    def _map_back(self, length: int) -> list[Mapping]:
        """Map room for ``length`` bytes from the device."""
        segment = self.segment
        return [self.pool.map(min(segment, length - at), Direction.FROM_DEVICE) for at in range(0, length, segment)]

    def _range(self, feature: BlkFeature, kind: BlkType, offset: int, length: int, flags: int) -> None:
        if not self.features & feature.mask:
            raise OSError(errno.ENOTSUP, f"the device does not offer {feature.name}")
        if (offset, offset + length) != self._sectors(offset, length):
            raise UsageError(f"{length} bytes at {offset} are not whole sectors of {SECTOR} bytes")
        data = BlkRange.codec.pack(offset // SECTOR, length // SECTOR, flags)
        mappings = [self.pool.map(data, Direction.TO_DEVICE)]
        self._requests.finish([self._requests.submit(kind, 0, parts_of(mappings), (), PendingRequest(mappings))])

    def _sectors(self, offset: int, length: int) -> tuple[int, int]:
        """Round a range to whole sectors. Raises UsageError if it is not inside the disk."""
        if offset < 0 or offset + length > self.size:
            raise UsageError(f"{length} bytes at {offset} lie outside the disk of {self.size} bytes")
        return offset // SECTOR * SECTOR, -(-(offset + length) // SECTOR) * SECTOR


def open_disk(
    path: Path | str,
    *,
    queues: int = 1,
    depth: int = 128,
    polling: bool = False,
    timeout: float = REQUEST_SECONDS,
) -> BlockDisk:
    """Open the disk that the vfio-user server at ``path`` serves, or that of a PCI function of this machine.

    The latter is named by its address, as in ``0000:00:05.0``. No driver may be bound to it, and as there are no
    interrupts in user space, it is always polled. ``timeout`` is how many seconds the device may hold requests and
    return none.
    """
    if isinstance(path, str) and (address := full_address(path)):
        bus: PciBus = SysfsBus.open(address)
        polling = True
    else:
        bus = VfioUserBus.connect(path)
    return BlockDisk(bus, queues=queues, depth=depth, polling=polling, timeout=timeout)
