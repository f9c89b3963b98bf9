"""The device's end of a split virtqueue (virtio 1.4, 2.7), over a window.

This file runs compiled by Cython, and as it stands when it is not: one source, the same checks. Every
number that the driver wrote is read once, checked at once, and from then on a local; the driver may change
it behind our back and gains nothing. What breaks a rule raises BadRing with the rule; the caller sets
DEVICE_NEEDS_RESET.
"""

from __future__ import annotations

import nodma.ring.fences as fences
from nodma.errors import BadRing, OutsideAddress
from nodma.ring.layout import RingLayout
from nodma.spec.virtio import (
    AVAIL_NO_INTERRUPT,
    USED_NO_NOTIFY,
    DescFlag,
    Descriptor,
)
from nodma.window import Window

_NEXT = int(DescFlag.NEXT)
_WRITE = int(DescFlag.WRITE)
_INDIRECT = int(DescFlag.INDIRECT)
_DESC_BYTES = Descriptor.size
_DESC_WORDS = Descriptor.size // 8  # a descriptor is read as two 64-bit words: addr; len, flags, next
_NO_INTERRUPT = AVAIL_NO_INTERRUPT
_NO_NOTIFY = USED_NO_NOTIFY

CHAIN_LIMIT = 1024
"""Descriptors that a chain may have, if the queue is not longer: what one preadv(2) takes (IOV_MAX)."""
CHAIN_BYTES_LIMIT = 0xFFFFFFFF
"""Bytes that a chain may have in all (2.7.5.2)."""


class Request:
    """One descriptor chain, as the device may touch it: bounded views of the window and nothing else.

    ``readable`` are the parts that the driver filled, ``writable`` those that the device is to fill, both
    in the driver's order and framing, of which a device must assume nothing (2.7.4). ``written`` is what
    the driver will be told: how many bytes from the start of the writable parts are the device's.
    """

    __slots__ = ("head", "readable", "writable", "written")

    def __init__(self, head: int, readable: list[memoryview], writable: list[memoryview]) -> None:
        self.head = head
        self.readable = readable
        self.writable = writable
        self.written = 0

    def read(self, size: int | None = None) -> bytes:
        """Take up to ``size`` bytes, or all that are left, from the front of the readable parts."""
        parts = []
        while self.readable and size != 0:
            part = self.readable[0]
            if size is not None and len(part) > size:
                parts.append(part[:size])
                self.readable[0] = part[size:]
                break
            parts.append(part)
            del self.readable[0]
            if size is not None:
                size -= len(part)
        return b"".join(parts)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Put ``data`` at the front of what is left of the writable parts; give the bytes that fitted."""
        data = memoryview(data).cast("B")
        done = 0
        while self.writable and done < len(data):
            part = self.writable[0]
            count = min(len(part), len(data) - done)
            part[:count] = data[done : done + count]
            done += count
            if count == len(part):
                del self.writable[0]
            else:
                self.writable[0] = part[count:]
        self.written += done
        return done

    def take_tail(self, size: int) -> memoryview | None:
        """Take the last ``size`` bytes off the writable parts, where they lie in one piece; else None."""
        if not self.writable or len(self.writable[-1]) < size:
            return None
        last = self.writable[-1]
        if len(last) == size:
            del self.writable[-1]
        else:
            self.writable[-1] = last[:-size]
        return last[len(last) - size :]


class DeviceRing:
    """The queue that ``layout`` places in ``window``.

    An address in a descriptor is good if it, less ``base``, lies in ``[first, limit)`` of the window and
    so does all that it begins; the profile says which these are. ``base`` may be set anew when the window
    moves. Raises BadRing if the parts of the queue do not lie in there, aligned as they must be.
    """

    def __init__(
        self,
        window: Window,
        layout: RingLayout,
        *,
        base: int,
        first: int,
        limit: int,
        indirect: bool,
        event_idx: bool,
    ) -> None:
        layout.check(first, limit, base)
        self._bytes: memoryview = window.bytes
        size = layout.size
        self._table = window.words("Q", layout.desc, _DESC_WORDS * size)
        self._avail = window.words("H", layout.avail, 2 + size + 1)
        self._used_head = window.words("H", layout.used, 2 + 4 * size + 1)
        self._used_ring = window.words("I", layout.used, 1 + 2 * size)
        self._size = size
        self._mask = size - 1
        self._event_idx = event_idx
        self._indirect = indirect
        self.base = base
        self.first = first
        self.limit = limit
        self._seen = self._used = self._signalled = 0
        self._bad: BadRing | None = None

    def move(self, base: int) -> None:
        """Follow the window to another bus address."""
        self.base = base

    def pop(self, most: int) -> list[Request]:
        """Take up to ``most`` requests that the driver made available.

        Raises BadRing at the first that is wrong, once those before it were given out.
        """
        if self._bad is not None:
            raise self._bad
        batch: list[Request] = []
        seen = self._seen
        ahead = (fences.load_acquire(self._avail, 1) - seen) & 0xFFFF
        if ahead > self._size:
            raise BadRing(f"the available index is {ahead} ahead, the queue has {self._size} entries")
        count = min(ahead, most)
        avail = self._avail
        mask = self._mask
        try:
            for i in range(seen, seen + count):
                batch.append(self._chain(avail[2 + (i & mask)]))  # noqa: PERF401 - keeps those before a bad one
        except BadRing as error:
            if not batch:
                self._bad = error
                raise
            self._bad = error
        self._seen = (seen + len(batch)) & 0xFFFF
        return batch

    def pending(self) -> bool:
        """Tell whether the driver made something available that was not taken."""
        return self._bad is not None or fences.load_acquire(self._avail, 1) != self._seen

    def _chain(self, head: int) -> Request:
        """Walk the chain that begins at ``head``; each number is read once."""
        memory = self._bytes
        table = self._table
        count = self._size
        index = head
        base = self.base
        first = self.first
        limit = self.limit
        room = max(count, CHAIN_LIMIT)
        total = 0
        inside = False
        readable: list[memoryview] = []
        writable: list[memoryview] = []
        while True:
            if index >= count:
                raise BadRing(f"descriptor {index} of a table of {count}, in the chain of head {head}")
            if room == 0:
                raise BadRing(f"the chain of head {head} has a loop, or more descriptors than the device takes")
            room -= 1
            addr = table[2 * index]
            word = table[2 * index + 1]
            length = word & 0xFFFFFFFF
            flags = (word >> 32) & 0xFFFF
            if addr < base + first or addr - base > limit or length > limit - (addr - base):
                raise OutsideAddress(
                    f"{'indirect table' if flags & _INDIRECT else 'buffer'} of {length} bytes at {addr:#x}"
                    f" in the chain of head {head} is outside the window"
                    f" [{base + first:#x}, {base + limit:#x})",
                    addr,
                    length,
                )
            offset = addr - base
            if flags & _INDIRECT:
                self._check_indirect(head, inside, flags, length)
                inside = True
                table = memory[offset : offset + length].cast("Q")
                count = length // _DESC_BYTES
                index = 0
                continue
            total += length
            if total > CHAIN_BYTES_LIMIT:
                raise BadRing(f"the chain of head {head} has more than 2^32 - 1 bytes")
            if flags & _WRITE:
                writable.append(memory[offset : offset + length])
            elif writable:
                raise BadRing(f"the chain of head {head} has a readable part behind a writable one")
            else:
                readable.append(memory[offset : offset + length])
            if not flags & _NEXT:
                return Request(head, readable, writable)
            index = word >> 48

    def _check_indirect(self, head: int, inside: bool, flags: int, length: int) -> None:
        """Hold an indirect descriptor against 2.7.5.3."""
        if not self._indirect:
            raise BadRing(f"the chain of head {head} is indirect, which was not negotiated")
        if inside:
            raise BadRing(f"the chain of head {head} has an indirect table inside an indirect table")
        if flags & _NEXT:
            raise BadRing(f"the chain of head {head} has a descriptor that is both indirect and continued")
        if length == 0 or length % _DESC_BYTES:
            raise BadRing(
                f"the chain of head {head} has an indirect table of {length} bytes, no multiple of {_DESC_BYTES}"
            )

    def push(self, head: int, written: int) -> None:
        """Give a chain back, the device having written so many bytes. :meth:`publish` tells the driver."""
        at = 1 + 2 * (self._used & self._mask)
        self._used_ring[at] = head
        self._used_ring[at + 1] = written
        self._used = (self._used + 1) & 0xFFFF

    def publish(self) -> bool:
        """Let the driver see what was pushed; tell whether it wants an interrupt for it (2.7.7)."""
        used = self._used
        before = self._signalled
        if used == before:
            return False
        fences.store_release(self._used_head, 1, used)
        fences.full_fence()  # the index before the driver's wish: else both sides wait for each other
        self._signalled = used
        if not self._event_idx:
            return not self._avail[0] & _NO_INTERRUPT
        event = self._avail[2 + self._size]
        return ((used - event - 1) & 0xFFFF) < ((used - before) & 0xFFFF)

    def arm(self) -> bool:
        """Ask for a notification of the next request; tell whether one came before that took hold."""
        if self._event_idx:
            self._used_head[2 + 4 * self._size] = self._seen
        else:
            self._used_head[0] = 0
        fences.full_fence()  # the wish before the index, against the same race
        return fences.load_acquire(self._avail, 1) != self._seen

    def disarm(self) -> None:
        """Ask for no notifications while the queue is being served."""
        if not self._event_idx:
            self._used_head[0] = _NO_NOTIFY
