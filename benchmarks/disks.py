"""Attach a front end to a disk: over vfio-user, as nodma serves it, and over vhost-user."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks.front import (
    CACHE_LINE,
    ENTRIES,
    PAGE,
    SEGMENT,
    WANTED,
    Doorbell,
    FrontEnd,
    Limits,
    Places,
    Work,
    cell_bytes,
)
from benchmarks.vhost_user import (
    Connection,
    MemoryTable,
    Number,
    ProtocolFeature,
    Request,
    VringAddress,
    VringState,
)
from nodma.driver.vfio_user_bus import VfioUserBus
from nodma.driver.virtio import VirtioPci
from nodma.errors import NodmaError
from nodma.ring import RingLayout
from nodma.spec.vfio_user import TYPE_COMMAND, Cmd, Header, MsgFlag, RegionAccess
from nodma.spec.virtio import DESC_ALIGN, Feature
from nodma.spec.virtio_blk import BlkConfig
from nodma.vfio_user.client import Client, IoEventFd
from nodma.window import Window

_VECTORS: Final = 2
_QUEUE_VECTOR: Final = 1
_VHOST_BASE: Final = 1 << 32
"""Where the window of a vhost-user disk lies in the addresses that its driver uses."""
_TRANSPORT: Final = Feature.VERSION_1.mask | Feature.EVENT_IDX.mask | Feature.INDIRECT_DESC.mask
_ONE: Final = (1).to_bytes(8, "little")

Reserve = Callable[[int, int], int]
"""Returns the offset of that many bytes of the window, aligned like that."""


def _places(rings: list[RingLayout], reserve: Reserve, work: Work, limits: Limits) -> list[Places]:
    cell = cell_bytes(work, limits.segment)
    return [
        Places(ring, reserve(cell * work.depth, CACHE_LINE), reserve(work.bytes * work.depth, PAGE)) for ring in rings
    ]


class Arena:
    """A window of our own, given out from its start on."""

    def __init__(self, size: int) -> None:
        self.window = Window.create(size)
        self._free = 0

    def reserve(self, length: int, align: int) -> int:
        """Return the offset of that many bytes. Raises NodmaError if fewer are left."""
        at = -(-self._free // align) * align
        self._free = at + length
        if self._free > self.window.size:
            raise NodmaError(f"the window of {self.window.size} bytes is too small for this work")
        return at

    def rings(self, count: int) -> list[RingLayout]:
        """Lay out the rings of so many queues."""
        size = RingLayout.packed_at(0, ENTRIES).end
        return [RingLayout.packed_at(self.reserve(size, PAGE), ENTRIES) for _ in range(count)]


class BareDisk(FrontEnd):
    """No disk, but the same buffers as one: for :meth:`~FrontEnd.run_bare` on an image of ``capacity`` bytes."""

    def __init__(self, capacity: int, work: Work, *, window: int) -> None:
        """Make a window of so many bytes. Raises NodmaError if the work does not fit in there."""
        arena = Arena(window)
        self._window = arena.window
        limits = Limits(capacity, SEGMENT)
        queues = [(places, Doorbell(-1, b"")) for places in _places(arena.rings(1), arena.reserve, work, limits)]
        super().__init__(work, arena.window, 0, limits, queues, -1)

    def close(self) -> None:
        """Let go of the window."""
        super().close()
        self._window.close()


class NodmaDisk(FrontEnd):
    """A disk behind a vfio-user socket; rings and data lie in its BAR."""

    def __init__(self, path: Path, work: Work) -> None:
        """Attach. Raises NodmaError, whichever of it fits, if that fails."""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        client = Client(self._socket)
        self._device = device = VirtioPci(VfioUserBus(client))
        self._parts: list[IoEventFd] = []
        try:
            self._parts = client.region_io_fds(device.notifier(0)[0])
            features = device.negotiate(WANTED)
            limits = Limits.of(device.device_config(BlkConfig), features, work.queues)
            call_fd = device.bus.enable_msix(_VECTORS)[_QUEUE_VECTOR]
            rings = [self._ring(index) for index in range(work.queues)]
            bells = [self._doorbell(index) for index in range(work.queues)]
            places = _places(rings, device.reserve, work, limits)
            bar = device.space.bar(device.region.bar)
            assert bar is not None  # or there were no window
            queues = list(zip(places, bells, strict=True))
            super().__init__(work, device.window, bar.address, limits, queues, call_fd)
            device.start()
        except BaseException:
            self._let_go()
            raise

    def _ring(self, index: int) -> RingLayout:
        at = -(-self._device.free[0] // DESC_ALIGN) * DESC_ALIGN
        self._device.set_up_queue(index, ENTRIES, vector=_QUEUE_VECTOR)
        return RingLayout.packed_at(at, ENTRIES)

    def _doorbell(self, index: int) -> Doorbell:
        """Notify by eventfd if the server gives one for the queue's doorbell, else by a posted write."""
        bar, offset, data = self._device.notifier(index)
        for part in self._parts:
            if part.offset <= offset and offset + len(data) <= part.offset + part.size:
                return Doorbell(part.fd, _ONE)
        body = RegionAccess.codec.pack(offset, bar, len(data)) + data
        size = Header.size + len(body)
        header = Header.codec.pack(0, Cmd.REGION_WRITE, size, TYPE_COMMAND | MsgFlag.NO_REPLY, 0)
        return Doorbell(self._socket.fileno(), header + body)

    def close(self) -> None:
        """Reset the device, and let it go."""
        super().close()
        self._let_go()

    def _let_go(self) -> None:
        self._device.close()
        for part in self._parts:
            os.close(part.fd)


class VhostDisk(FrontEnd):
    """A disk behind a vhost-user socket; rings and data lie in a window of ours."""

    def __init__(self, path: Path, work: Work, *, window: int) -> None:
        """Attach, with a window of so many bytes. Raises NodmaError, whichever of it fits, if that fails."""
        self._connection = connection = Connection(path)
        arena = Arena(window)
        self._window = arena.window
        call_fd = os.eventfd(0, os.EFD_CLOEXEC)
        self._eventfds = [call_fd]
        try:
            protocol = ProtocolFeature.CONFIG.mask | ProtocolFeature.MQ.mask | ProtocolFeature.REPLY_ACK.mask
            features = connection.negotiate(WANTED | _TRANSPORT, protocol)
            if features & _TRANSPORT != _TRANSPORT:
                raise NodmaError(f"the disk offers {features:#x}: no VERSION_1, EVENT_IDX or INDIRECT_DESC")
            limits = Limits.of(BlkConfig(connection.config(BlkConfig.size)), features, work.queues)
            rings = arena.rings(work.queues)
            places = _places(rings, arena.reserve, work, limits)
            self._share_window()
            bells = [self._set_up_queue(index, ring, call_fd) for index, ring in enumerate(rings)]
            queues = list(zip(places, bells, strict=True))
            super().__init__(work, self._window, _VHOST_BASE, limits, queues, call_fd)
        except BaseException:
            self._let_go()
            raise

    def _share_window(self) -> None:
        window = self._window
        table = MemoryTable.new(guest_address=_VHOST_BASE, size_bytes=window.size, user_address=_VHOST_BASE)
        self._connection.send(Request.SET_MEM_TABLE, table, [window.fd])

    def _set_up_queue(self, index: int, ring: RingLayout, call_fd: int) -> Doorbell:
        send = self._connection.send
        kick = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._eventfds.append(kick)
        addresses = VringAddress.new(
            index=index, desc=_VHOST_BASE + ring.desc, used=_VHOST_BASE + ring.used, avail=_VHOST_BASE + ring.avail
        )
        send(Request.SET_VRING_NUM, VringState.new(index=index, number=ring.size))
        send(Request.SET_VRING_BASE, VringState.new(index=index))
        send(Request.SET_VRING_ADDR, addresses)
        send(Request.SET_VRING_KICK, Number.new(value=index), [kick])
        send(Request.SET_VRING_CALL, Number.new(value=index), [call_fd])
        send(Request.SET_VRING_ENABLE, VringState.new(index=index, number=1))
        return Doorbell(kick, _ONE)

    def close(self) -> None:
        """Disconnect, which stops the queues."""
        super().close()
        self._let_go()

    def _let_go(self) -> None:
        self._connection.close()
        for fd in self._eventfds:
            os.close(fd)
        self._window.close()
