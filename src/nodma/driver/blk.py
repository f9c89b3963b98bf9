"""A block device for Python callers, over a virtio-pci device with restricted DMA."""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from nodma.driver.bus import PciBus
from nodma.driver.retained_buffer import RetainedBuffer
from nodma.driver.sysfs_bus import SysfsBus
from nodma.driver.vfio_user_bus import VfioUserBus
from nodma.driver.virtio import VirtioPci
from nodma.errors import PoolTooSmall, ProbeError, UsageError
from nodma.pci.sysfs import full_address
from nodma.ring import DriverRing, Parts, RingLayout
from nodma.spec.virtio import Descriptor, DeviceType, Feature
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
        BlkFeature.MQ,
        BlkFeature.DISCARD,
        BlkFeature.WRITE_ZEROES,
    )
)
_CELL: Final = 32
"""Bytes that a request has beside its data: the header, and behind it the status."""
_STATUS_AT: Final = BlkRequest.size
_POOL_SHARE: Final = 4
"""A request takes at most this fraction of the pool, whatever the device would take."""
_RING_SHARE: Final = 4
"""Rings, cells and indirect tables take at most this fraction of the region."""
_MAX_QUEUE: Final = 256
_MAX_SEGMENTS: Final = 1022
"""With header and status, what a device takes in one chain."""
_ANY_SIZE: Final = 0xFFFFFFFF
_BESIDE_DATA: Final = 2
"""Parts of a request beside its data: header and status."""
_CONFIG_VECTOR: Final = 0
_QUEUE_VECTOR: Final = 1
_REAP: Final = 64
_CHECK_SECONDS: Final = 0.5
"""How often a driver that waits looks whether its device is still well."""
_NOT_DONE: Final = 0xFF
_HEADER: Final = BlkRequest.codec

ReadBuffer = bytes | bytearray | memoryview
WriteBuffer = bytearray | memoryview


class PendingRequest:
    """A request on its way. ``done`` once the device gave it back; ``status`` is then what it said.

    Its ``mappings`` are unmapped then; unless it is to ``retain_slots``, and all went well.
    """

    __slots__ = ("cell", "destination", "done", "mappings", "min_written", "retain_slots", "status")

    def __init__(
        self,
        mappings: Sequence[Mapping],
        destination: memoryview | None = None,
        *,
        min_written: int = 0,
        retain_slots: bool = False,
    ) -> None:
        self.cell = 0
        self.mappings = mappings
        self.destination = destination
        self.min_written = min_written  # bytes that the device must have written, or not all is well
        self.retain_slots = retain_slots
        self.done = False
        self.status = _NOT_DONE


class _Queue:
    """A request queue: its ring, the cells of its requests, how to notify it."""

    def __init__(self, device: VirtioPci, index: int, size: int, vector: int, parts: int) -> None:
        self.ring: DriverRing = device.set_up_queue(index, size, vector=vector, parts=parts)
        cells = device.reserve(_CELL * size)
        self.cells = [cells + _CELL * number for number in range(size)]
        self.doorbell = device.notifier(index)


class BlockDisk:
    """The disk behind a virtio-blk device: bytes at offsets, several requests in flight.

    ``polling`` spins for completions, else the driver sleeps until an interrupt. One thread at a time.
    Methods raise OSError (EIO, ENOTSUP, EROFS) for what the device refuses, and DeviceFailed or
    Disconnected when there is no working device any more.
    """

    def __init__(self, bus: PciBus, *, queues: int = 1, depth: int = 128, polling: bool = False) -> None:
        """Probe, negotiate, set up. Owns ``bus`` from here on. Raises ProbeError if it is no such disk."""
        self.device = VirtioPci(bus)
        try:
            self._set_up(queues, depth, polling)
        except BaseException:
            self.device.close()
            raise

    def _set_up(self, queues: int, depth: int, polling: bool) -> None:
        device = self.device
        if device.space.header.device_id != MODERN_DEVICE_BASE + DeviceType.BLOCK:
            raise ProbeError(f"device {device.space.header.device_id:#06x} is no block device")
        features = self.features = device.negotiate(_WANTED)
        config = self.config = device.device_config(BlkConfig)
        self.size = config.capacity * SECTOR
        """Bytes of the disk."""
        self.read_only = bool(features & BlkFeature.RO.mask)
        self.polling = polling
        self._eventfds = [] if polling else device.bus.enable_msix(2)
        device.set_config_vector(NO_VECTOR if polling else _CONFIG_VECTOR)
        vector = NO_VECTOR if polling else _QUEUE_VECTOR

        segments, size_max, available = self._limits()
        count = min(max(1, queues), available)
        indirect = bool(features & Feature.INDIRECT_DESC.mask)
        parts = segments + _BESIDE_DATA if indirect else 0
        entries = self._entries(depth, count, parts)
        if not indirect:
            segments = min(segments, entries - _BESIDE_DATA)
        self._queues = [_Queue(device, index, entries, vector, parts) for index in range(count)]
        self._segments = segments
        self._turn = 0
        self._finished: list[PendingRequest] = []  # done while room was waited for, not yet given out
        self.in_flight = 0
        """Requests that the device has."""

        self._memory = device.window.view(0, device.window.size)
        self.pool = self._make_pool()
        most = self.pool.stats.slots * SLOT // _POOL_SHARE
        self.segment = min(self.pool.max_mapping, size_max, most) // SECTOR * SECTOR
        """Bytes that one part of a request has at most."""
        self.max_request = min(self.segment * segments, most // SECTOR * SECTOR)
        """Bytes that one request moves at most: never more than a quarter of the pool."""
        self._poll = select.poll()
        for fd in self._eventfds:
            self._poll.register(fd, select.POLLIN)
        device.start()

    def _make_pool(self) -> BouncePool | ReservedPool:
        device = self.device
        if device.common is None:
            return BouncePool(device.window, *device.free, reclaim=self._make_progress)
        return ReservedPool(BouncePool(device.window, *device.free), device.common, reclaim=self._make_progress)

    def _limits(self) -> tuple[int, int, int]:
        """Give seg_max, size_max (bytes) and the number of queues; those that were not negotiated have defaults.

        Raises ProbeError for limits within which no sector can be moved.
        """
        config, features = self.config, self.features
        segments = config.seg_max if features & BlkFeature.SEG_MAX.mask else 1
        size_max = config.size_max if features & BlkFeature.SIZE_MAX.mask else _ANY_SIZE
        queues = config.num_queues if features & BlkFeature.MQ.mask else 1
        if segments < 1 or size_max < SECTOR or queues < 1:
            raise ProbeError(
                f"the device says seg_max {segments}, size_max {size_max}, {queues} queues: no disk works so"
            )
        return min(segments, _MAX_SEGMENTS), size_max, queues

    def _entries(self, depth: int, queues: int, parts: int) -> int:
        """Choose the queues' size: what ``depth`` needs, if that leaves most of the region to the pool."""
        entries = min(_MAX_QUEUE, self.device.queue_limit(0), 1 << max(2, (depth - 1).bit_length()))
        each = _CELL + Descriptor.size * parts
        room = self.device.free[1] // _RING_SHARE // queues
        while entries > 2 and RingLayout.packed_at(0, entries).end + each * entries > room:
            entries //= 2
        return entries

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
        self._finish([self._submit(BlkType.GET_ID, 0, (), _parts(mappings), pending)])
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
        self._finish(
            [
                self.submit_read(begin + at, whole[at : at + self.max_request])
                for at in range(0, len(whole), self.max_request)
            ]
        )
        if not aligned:
            view[:] = whole[offset - begin : offset - begin + len(view)]

    def pwrite(self, data: ReadBuffer, offset: int) -> int:
        """Write ``data`` at ``offset``; gives its length. What shares a sector with it is read and kept."""
        view = memoryview(data).cast("B")
        begin, end = self._sectors(offset, len(view))
        if begin != offset or end != offset + len(view):
            whole = bytearray(self.pread(end - begin, begin))
            whole[offset - begin : offset - begin + len(view)] = view
            view, offset = memoryview(whole), begin
        self._finish(
            [
                self.submit_write(offset + at, view[at : at + self.max_request])
                for at in range(0, len(view), self.max_request)
            ]
        )
        return len(data)

    def flush(self) -> None:
        """Have all that was written made durable."""
        if self.features & BlkFeature.FLUSH.mask:
            self._finish([self._submit(BlkType.FLUSH, 0, (), (), PendingRequest(()))])

    def discard(self, offset: int, length: int) -> None:
        """Tell the device that a range of whole sectors is no longer needed."""
        self._range(BlkFeature.DISCARD, BlkType.DISCARD, offset, length, 0)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """Have a range of whole sectors read as zeros, deallocated if the device can."""
        self._range(BlkFeature.WRITE_ZEROES, BlkType.WRITE_ZEROES, offset, length, RANGE_UNMAP if unmap else 0)

    # Requests in flight

    def submit_read(self, offset: int, into: WriteBuffer) -> PendingRequest:
        """Begin to read whole sectors, at most :attr:`max_request` bytes, into a buffer."""
        length = len(into)
        mappings = self._map_back(length)
        return self._submit(
            BlkType.IN,
            offset // SECTOR,
            (),
            _parts(mappings),
            PendingRequest(mappings, memoryview(into), min_written=length + 1),
        )

    def submit_write(self, offset: int, data: ReadBuffer) -> PendingRequest:
        """Begin to write whole sectors, at most :attr:`max_request` bytes; ``data`` is copied at once."""
        segment = self.segment
        mappings = [
            self.pool.map(data[at : at + segment] if len(data) > segment else data, Direction.TO_DEVICE)
            for at in range(0, len(data), segment)
        ]
        return self._submit(BlkType.OUT, offset // SECTOR, _parts(mappings), (), PendingRequest(mappings))

    # Without a copy

    def submit_read_mapping(self, offset: int, length: int) -> PendingRequest | None:
        """Begin to read whole sectors, at most :attr:`max_request` bytes, into slots that the request retains.

        None if the pool has no room now: it may be others that hold the slots, so it is not waited for.
        """
        mappings: list[Mapping] = []
        for at in range(0, length, self.segment):
            mapping = self.pool.try_map(min(self.segment, length - at), Direction.FROM_DEVICE)
            if mapping is None:
                for taken in mappings:
                    self.pool.unmap(taken)
                return None
            mappings.append(mapping)
        pending = PendingRequest(mappings, min_written=length + 1, retain_slots=True)
        return self._submit(BlkType.IN, offset // SECTOR, (), _parts(mappings), pending)

    def submit_write_mapping(self, retained: RetainedBuffer, offset: int) -> PendingRequest:
        """Begin to write what another disk of the same pool has retained; the slots stay the caller's to release.

        Raises UsageError for slots of another pool, or more pieces than the device takes.
        """
        if retained.pool.window is not self.pool.window:
            raise UsageError("these slots are in another disk's pool, which this one does not share: copy the data")
        parts = retained.parts(self.segment)
        if retained.length % SECTOR or len(parts) > self._segments:
            raise UsageError(
                f"cannot write {retained.length} bytes in {len(parts)} pieces:"
                f" this disk takes whole sectors in up to {self._segments}"
            )
        return self._submit(BlkType.OUT, offset // SECTOR, parts, (), PendingRequest(()))

    def read_mapping(self, offset: int, length: int) -> RetainedBuffer:
        """Read whole sectors, at most :attr:`max_request` bytes, into slots of the pool, and leave them there.

        Raises PoolTooSmall if there is no room for them, and none will be without the caller's doing.
        """
        if (offset, offset + length) != self._sectors(offset, length) or not 0 < length <= self.max_request:
            raise UsageError(f"{length} bytes at {offset}: whole sectors, at most {self.max_request} bytes at once")
        while (pending := self.submit_read_mapping(offset, length)) is None:
            self._make_progress()
        self._finish([pending])
        return self.take(pending)

    def write_mapping(self, retained: RetainedBuffer, offset: int) -> None:
        """Write what another disk of the same pool has retained. Raises UsageError as :meth:`submit_write_mapping`."""
        self._sectors(offset, retained.length)
        self._finish([self.submit_write_mapping(retained, offset)])

    def take(self, pending: PendingRequest) -> RetainedBuffer:
        """Take what a pending of :meth:`submit_read_mapping` kept, once it is done. Raises OSError if it failed."""
        self.check(pending)
        mappings, pending.mappings = pending.mappings, ()
        return RetainedBuffer(self.pool, mappings)

    def kick(self) -> None:
        """Let the device see what was submitted; a request is not on its way before."""
        for queue in self._queues:
            if queue.ring.publish():
                self.device.bus.post_bar(*queue.doorbell)

    def reap(self) -> list[PendingRequest]:
        """Collect what is done, without waiting. Each request is given out once, here or by :meth:`wait`."""
        finished, self._finished = self._finished, []
        for queue in self._queues:
            for pending, written in queue.ring.reap(_REAP):
                assert isinstance(pending, PendingRequest)
                self._complete(queue, pending, written)
                finished.append(pending)
        return finished

    def wait(self) -> list[PendingRequest]:
        """Send off what was submitted, and collect what is done, waiting for one if there is none."""
        self.kick()
        while not (finished := self.reap()):
            if not self.in_flight:
                break
            if self.polling:
                self._spin()
            else:
                self._sleep()
        return finished

    def close(self) -> None:
        """Reset the device and let it go. Requests in flight are lost."""
        self._memory.release()
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

    def _submit(self, kind: BlkType, sector: int, out: Parts, back: Parts, pending: PendingRequest) -> PendingRequest:
        """Put a request in the next queue, waiting until there is room."""
        queue = self._queues[self._turn]
        self._turn = (self._turn + 1) % len(self._queues)
        while not queue.cells:
            self._make_progress()
        cell = pending.cell = queue.cells.pop()
        memory = self._memory
        _HEADER.pack_into(memory, cell, kind, 0, sector)
        memory[cell + _STATUS_AT] = _NOT_DONE
        readable = [(cell, _STATUS_AT), *out]
        writable = [*back, (cell + _STATUS_AT, 1)]
        while not queue.ring.add(readable, writable, pending):
            self._make_progress()
        self.in_flight += 1
        return pending

    def _complete(self, queue: _Queue, pending: PendingRequest, written: int) -> None:
        """Take a request back: read its status once, copy out what it read, free its slots."""
        pending.status = self._memory[pending.cell + _STATUS_AT]
        pending.done = True
        queue.cells.append(pending.cell)
        self.in_flight -= 1
        if written < pending.min_written and pending.status == BlkStatus.OK:
            pending.status = BlkStatus.IOERR  # it says that all is well, but did not write all
        into = pending.destination
        if pending.status != BlkStatus.OK:
            into = None
        elif pending.retain_slots:
            return
        at = 0
        for mapping in pending.mappings:
            if into is None:
                self.pool.unmap(mapping)
            else:
                self.pool.unmap(mapping, into[at : at + mapping.length])
                at += mapping.length
        pending.mappings = ()

    def _finish(self, tickets: list[PendingRequest]) -> None:
        """Wait for requests. Raises OSError if one failed, once all are done."""
        others = []
        while not all(pending.done for pending in tickets):
            others += self.wait()
        self._finished += [pending for pending in others if pending not in tickets]
        for pending in tickets:
            self.check(pending)

    def check(self, pending: PendingRequest) -> None:
        """Raise OSError if a request that is done failed."""
        if pending.status == BlkStatus.UNSUPP:
            raise OSError(errno.ENOTSUP, "the device does not support this request")
        if pending.status != BlkStatus.OK:
            raise OSError(errno.EROFS if self.read_only else errno.EIO, "the device reports an I/O error")

    def _range(self, feature: BlkFeature, kind: BlkType, offset: int, length: int, flags: int) -> None:
        if not self.features & feature.mask:
            raise OSError(errno.ENOTSUP, f"the device does not offer {feature.name}")
        if (offset, offset + length) != self._sectors(offset, length):
            raise UsageError(f"{length} bytes at {offset} are not whole sectors of {SECTOR} bytes")
        data = BlkRange.codec.pack(offset // SECTOR, length // SECTOR, flags)
        mappings = [self.pool.map(data, Direction.TO_DEVICE)]
        self._finish([self._submit(kind, 0, _parts(mappings), (), PendingRequest(mappings))])

    def _sectors(self, offset: int, length: int) -> tuple[int, int]:
        """Round a range to whole sectors. Raises UsageError if it is not inside the disk."""
        if offset < 0 or offset + length > self.size:
            raise UsageError(f"{length} bytes at {offset} do not lie on a disk of {self.size} bytes")
        return offset // SECTOR * SECTOR, -(-(offset + length) // SECTOR) * SECTOR

    def _make_progress(self) -> None:
        """Wait until something is given back: the queue or the pool is full (DMB-D3)."""
        if not self.in_flight:
            raise PoolTooSmall("the pool has no room, and no request is in flight that could make some")
        kept, self._finished = self._finished, []
        self._finished = kept + self.wait()

    def _spin(self) -> None:
        end = time.monotonic() + _CHECK_SECONDS
        rings = [queue.ring for queue in self._queues]
        while not any(ring.pending() for ring in rings):
            if time.monotonic() > end:
                self.device.check()
                return

    def _sleep(self) -> None:
        """Wait for an interrupt; now and then see whether the device is still well."""
        half = max(1, self.in_flight // len(self._queues) // 2)
        for queue in self._queues:
            if queue.ring.arm(min(half, queue.ring.outstanding) or 1):
                return
        events = self._poll.poll(_CHECK_SECONDS * 1000)
        for fd, _ in events:
            try:
                os.eventfd_read(fd)
            except BlockingIOError:
                continue
        if not events or events[0][0] == self._eventfds[_CONFIG_VECTOR]:
            self.device.check()


def _parts(mappings: Sequence[Mapping]) -> Parts:
    return [(mapping.offset, mapping.length) for mapping in mappings]


def open_disk(path: Path | str, *, queues: int = 1, depth: int = 128, polling: bool = False) -> BlockDisk:
    """Open the disk that the vfio-user server at ``path`` serves, or that of a PCI function of this machine.

    The latter is named by its address, as in ``0000:00:05.0``. No driver may be bound to it, and as there are no
    interrupts in user space, it is always polled.
    """
    if isinstance(path, str) and (address := full_address(path)):
        return BlockDisk(SysfsBus.open(address), queues=queues, depth=depth, polling=True)
    return BlockDisk(VfioUserBus.connect(path), queues=queues, depth=depth, polling=polling)
