"""Requests on their way to a disk and back: cells, queues, and waiting for them."""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Sequence
from typing import Final

from nodma.driver.blk.limits import CELL, STATUS_AT
from nodma.driver.virtio import VirtioPci
from nodma.errors import DeviceFailed, PoolTooSmall
from nodma.ring import DriverRing, Parts
from nodma.spec.virtio_blk import BlkRequest, BlkStatus, BlkType
from nodma.window import BouncePool, Mapping, ReservedPool

REQUEST_SECONDS: Final = 60.0
"""How long a device may hold requests and return none, before it is given up."""
CONFIG_VECTOR: Final = 0
QUEUE_VECTOR: Final = 1
_REAP: Final = 64
_CHECK_SECONDS: Final = 0.5
"""How often a driver that waits checks that its device is still well."""
_NOT_DONE: Final = 0xFF
_HEADER: Final = BlkRequest.codec


class PendingRequest:
    """A request on its way. ``done`` once the device returned it; ``status`` is then what it said.

    Its ``mappings`` are unmapped then; unless it is to ``retain_slots``, and all went well. With fewer bytes than
    ``min_written`` written by the device, a request failed whatever its status.
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
        self.min_written = min_written
        self.retain_slots = retain_slots
        self.done = False
        self.status = _NOT_DONE


class RequestQueue:
    """A request queue: its ring, the cells of its requests, how to notify it."""

    def __init__(self, device: VirtioPci, index: int, size: int, vector: int, parts: int) -> None:
        self.ring: DriverRing = device.set_up_queue(index, size, vector=vector, parts=parts)
        cells = device.reserve(CELL * size)
        self.cells = [cells + CELL * number for number in range(size)]
        self.doorbell = device.notifier(index)


class Requests:
    """The requests that a device has, on ``queues``. ``eventfds`` are its interrupts; none: it is polled.

    ``pool`` is whose slots they have; it is set before the first one. A device that holds requests and returns none of
    them for ``timeout`` seconds is given up: DeviceFailed.
    """

    pool: BouncePool | ReservedPool

    def __init__(
        self,
        device: VirtioPci,
        queues: Sequence[RequestQueue],
        eventfds: Sequence[int],
        *,
        timeout: float,
        read_only: bool,
    ) -> None:
        self._device = device
        self._read_only = read_only
        self._queues = queues
        self._eventfds = eventfds
        self._timeout = timeout
        self._turn = 0
        self._finished: list[PendingRequest] = []  # done while room was awaited, not yet handed out
        self._memory = device.window.view(0, device.window.size)
        self._poll = select.poll()
        for fd in eventfds:
            self._poll.register(fd, select.POLLIN)
        self.in_flight = 0
        """Requests that the device has."""

    def close(self) -> None:
        """Release the window. Requests in flight are lost."""
        self._memory.release()

    def submit(self, kind: BlkType, sector: int, out: Parts, back: Parts, pending: PendingRequest) -> PendingRequest:
        """Put a request in the next queue, waiting until there is room."""
        queue = self._queues[self._turn]
        self._turn = (self._turn + 1) % len(self._queues)
        while not queue.cells:
            self.make_progress()
        cell = pending.cell = queue.cells.pop()
        memory = self._memory
        _HEADER.pack_into(memory, cell, kind, 0, sector)
        memory[cell + STATUS_AT] = _NOT_DONE
        readable = [(cell, STATUS_AT), *out]
        writable = [*back, (cell + STATUS_AT, 1)]
        while not queue.ring.add(readable, writable, pending):
            self.make_progress()
        self.in_flight += 1
        return pending

    def kick(self) -> None:
        """Let the device see what was submitted; a request is not on its way before."""
        for queue in self._queues:
            if queue.ring.publish():
                self._device.bus.post_bar(*queue.doorbell)

    def reap(self) -> list[PendingRequest]:
        """Return what is done, without waiting. Each request is handed out once, here or by :meth:`wait`."""
        finished, self._finished = self._finished, []
        for queue in self._queues:
            for pending, written in queue.ring.reap(_REAP):
                assert isinstance(pending, PendingRequest)
                self._complete(queue, pending, written)
                finished.append(pending)
        return finished

    def wait(self) -> list[PendingRequest]:
        """Send off what was submitted, and return what is done, waiting for one if there is none.

        Raises DeviceFailed if the device needs a reset, or returns none in time.
        """
        self.kick()
        end = 0.0
        while not (finished := self.reap()):
            if not self.in_flight:
                break
            now = time.monotonic()
            end = end or now + self._timeout
            if now >= end:
                self._device.check()
                raise DeviceFailed(
                    f"the device returned none of {self.in_flight} requests for {self._timeout:g} s: reset it to go on"
                )
            if self._eventfds:
                self._sleep(min(_CHECK_SECONDS, end - now))
            else:
                self._spin(min(_CHECK_SECONDS, end - now))
        return finished

    def finish(self, requests: list[PendingRequest]) -> None:
        """Wait for requests. Raises OSError if one failed, once all are done."""
        others = []
        while not all(pending.done for pending in requests):
            others += self.wait()
        self._finished += [pending for pending in others if pending not in requests]
        for pending in requests:
            self.check(pending)

    def check(self, pending: PendingRequest) -> None:
        """Raise OSError if a request that is done failed."""
        if pending.status == BlkStatus.UNSUPP:
            raise OSError(errno.ENOTSUP, "the device does not support this request")
        if pending.status != BlkStatus.OK:
            raise OSError(errno.EROFS if self._read_only else errno.EIO, "the device reports an I/O error")

    def make_progress(self) -> None:
        """Wait until something is returned: the queue or the pool is full (DMB-D3)."""
        if not self.in_flight:
            raise PoolTooSmall("the pool has no room, and no request is in flight that could make some")
        kept, self._finished = self._finished, []
        self._finished = kept + self.wait()

    def _complete(self, queue: RequestQueue, pending: PendingRequest, written: int) -> None:
        """Take a request back: read its status once, copy out what it read, free its slots."""
        pending.status = self._memory[pending.cell + STATUS_AT]
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

    def _spin(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        rings = [queue.ring for queue in self._queues]
        while not any(ring.pending() for ring in rings):
            if time.monotonic() > end:
                self._device.check()
                return

    def _sleep(self, seconds: float) -> None:
        """Wait for an interrupt; now and then check that the device is still well."""
        half = max(1, self.in_flight // len(self._queues) // 2)
        for queue in self._queues:
            if queue.ring.arm(min(half, queue.ring.outstanding) or 1):
                return
        events = self._poll.poll(seconds * 1000)
        for fd, _ in events:
            try:
                os.eventfd_read(fd)
            except BlockingIOError:
                continue
        if not events or events[0][0] == self._eventfds[CONFIG_VECTOR]:
            self._device.check()


def parts_of(mappings: Sequence[Mapping]) -> Parts:
    """Return the parts of a request whose data is in ``mappings``."""
    return [(mapping.offset, mapping.length) for mapping in mappings]
