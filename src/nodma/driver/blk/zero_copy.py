"""From one disk of a shared pool to another without a copy: data that a device read stays in its slots."""

from __future__ import annotations

from nodma.driver.blk.requests import PendingRequest, Requests, parts_of
from nodma.driver.retained_buffer import RetainedBuffer
from nodma.errors import UsageError
from nodma.spec.virtio_blk import SECTOR, BlkType
from nodma.window import BouncePool, Direction, Mapping, ReservedPool


class ZeroCopy:
    """What a disk does with slots instead of buffers."""

    pool: BouncePool | ReservedPool
    segment: int
    max_request: int
    _requests: Requests
    _segments: int

    def submit_read_mapping(self, offset: int, length: int) -> PendingRequest | None:
        """Begin to read whole sectors, at most :attr:`max_request` bytes, into slots that the request retains.

        None if the pool has no room now: others may hold the slots, so it does not wait for them.
        """
        mappings: list[Mapping] = []
        for at in range(0, length, self.segment):
            mapping = self.pool.try_map(min(self.segment, length - at), Direction.FROM_DEVICE)
            if mapping is None:
                for mapped in mappings:
                    self.pool.unmap(mapped)
                return None
            mappings.append(mapping)
        pending = PendingRequest(mappings, min_written=length + 1, retain_slots=True)
        return self._requests.submit(BlkType.IN, offset // SECTOR, (), parts_of(mappings), pending)

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
        return self._requests.submit(BlkType.OUT, offset // SECTOR, parts, (), PendingRequest(()))

    def read_mapping(self, offset: int, length: int) -> RetainedBuffer:
        """Read whole sectors, at most :attr:`max_request` bytes, into slots of the pool, and leave them there.

        Raises PoolTooSmall if there is no room for them, and none will be without the caller's doing.
        """
        if (offset, offset + length) != self._sectors(offset, length) or not 0 < length <= self.max_request:
            raise UsageError(
                f"{length} bytes at {offset}: expected whole sectors, at most {self.max_request} bytes at once"
            )
        while (pending := self.submit_read_mapping(offset, length)) is None:
            self._requests.make_progress()
        self._requests.finish([pending])
        return self.take(pending)

    def write_mapping(self, retained: RetainedBuffer, offset: int) -> None:
        """Write what another disk of the same pool has retained. Raises UsageError as :meth:`submit_write_mapping`."""
        self._sectors(offset, retained.length)
        self._requests.finish([self.submit_write_mapping(retained, offset)])

    def take(self, pending: PendingRequest) -> RetainedBuffer:
        """Return what a request of :meth:`submit_read_mapping` retained, once done. Raises OSError if it failed."""
        self._requests.check(pending)
        mappings, pending.mappings = pending.mappings, ()
        return RetainedBuffer(self.pool, mappings)

    def _sectors(self, offset: int, length: int) -> tuple[int, int]:
        raise NotImplementedError
