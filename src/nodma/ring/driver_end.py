"""The driver's end of a split virtqueue (virtio 1.4, 2.7), over a window.

As careful with the device as the device's end is with the driver: what the driver wrote it does not read
back from shared memory, and what the device wrote is read once and checked. What breaks a rule raises
DeviceFailed.
"""

from __future__ import annotations

from collections.abc import Sequence

import nodma.ring.atomics as atomics
from nodma.errors import DeviceFailed, UsageError
from nodma.ring.layout import RingLayout
from nodma.spec.virtio import (
    AVAIL_NO_INTERRUPT,
    USED_NO_NOTIFY,
    DescFlag,
    Descriptor,
)
from nodma.window import Window

_NEXT = int(DescFlag.NEXT) << 32
_WRITE = int(DescFlag.WRITE) << 32
_INDIRECT = int(DescFlag.INDIRECT) << 32
_NEXT_SHIFT = 48
_DESC_BYTES = Descriptor.size
_DESC_WORDS = Descriptor.size // 8  # a descriptor is written as two 64-bit words: addr; len, flags, next
_NO_INTERRUPT = AVAIL_NO_INTERRUPT
_NO_NOTIFY = USED_NO_NOTIFY

Parts = Sequence[tuple[int, int]]
"""Pieces of a buffer: offset in the window and length, both in bytes."""


class DriverRing:
    """The queue that ``layout`` places in ``window``; ``base`` is what makes an offset an address.

    With ``table_entries``, chains of more than one part go through indirect tables, one for each entry of
    the queue, which lie at ``tables`` in the window, ``table_entries`` descriptors long.
    """

    def __init__(
        self,
        window: Window,
        layout: RingLayout,
        *,
        base: int,
        event_idx: bool,
        tables: int = 0,
        table_entries: int = 0,
    ) -> None:
        size = layout.size
        window.view(layout.desc, layout.end - layout.desc)[:] = bytes(layout.end - layout.desc)
        self._table = window.words("Q", layout.desc, _DESC_WORDS * size)
        self._avail = window.words("H", layout.avail, 2 + size + 1)
        self._used_head = window.words("H", layout.used, 2 + 4 * size + 1)
        self._used_ring = window.words("I", layout.used, 1 + 2 * size)
        self._tables = window.words("Q", tables, _DESC_WORDS * table_entries * size)
        self._tables_address = base + tables
        self._table_entries = table_entries
        self._size = size
        self._mask = size - 1
        self._base = base
        self._event_idx = event_idx
        self._added = 0
        self._published = 0
        self._seen = 0
        self._outstanding = 0
        self._free = list(range(size - 1, -1, -1))
        self._tokens: list[object] = [None] * size
        self._capacity = [0] * size
        self._chains: list[list[int] | None] = [None] * size

    @property
    def room(self) -> int:
        """Descriptors that are free."""
        return len(self._free)

    @property
    def outstanding(self) -> int:
        """Requests that the device has not given back."""
        return self._outstanding

    @property
    def longest(self) -> int:
        """Parts that one request may have."""
        return self._table_entries or self._size

    def add(self, readable: Parts, writable: Parts, token: object) -> bool:
        """Put a request in the queue, for :meth:`publish` to show; False if there is no room for it now.

        :meth:`reap` gives ``token`` back, which must not be None. Raises UsageError if the request has no
        part, or more than :attr:`longest`.
        """
        parts = len(readable) + len(writable)
        if not 0 < parts <= max(self._table_entries, self._size):
            raise UsageError(f"a request of {parts} parts: this queue takes 1 to {self.longest}")
        free = self._free
        indirect = 1 < parts <= self._table_entries
        if len(free) < (1 if indirect else parts):
            return False
        base = self._base
        capacity = 0
        head = free.pop()
        if indirect:
            table = self._tables
            at = 2 * head * self._table_entries
            word = 0
            following = 0
            for offset, length in readable:
                following += 1
                table[at] = base + offset
                word = length | _NEXT | following << _NEXT_SHIFT
                table[at + 1] = word
                at += 2
            for offset, length in writable:
                following += 1
                capacity += length
                table[at] = base + offset
                word = length | _NEXT | _WRITE | following << _NEXT_SHIFT
                table[at + 1] = word
                at += 2
            table[at - 1] = word & ~_NEXT & ((1 << _NEXT_SHIFT) - 1)
            self._table[2 * head] = self._tables_address + _DESC_BYTES * head * self._table_entries
            self._table[2 * head + 1] = _DESC_BYTES * parts | _INDIRECT
        else:
            chain = [head]
            index = head
            left = parts
            table = self._table
            for write, group in ((0, readable), (_WRITE, writable)):
                for offset, length in group:
                    left -= 1
                    word = length | write
                    if write:
                        capacity += length
                    table[2 * index] = base + offset
                    if left:
                        following = free.pop()
                        chain.append(following)
                        table[2 * index + 1] = word | _NEXT | following << _NEXT_SHIFT
                        index = following
                    else:
                        table[2 * index + 1] = word
            self._chains[head] = chain
        self._tokens[head] = token
        self._capacity[head] = capacity
        self._avail[2 + (self._added & self._mask)] = head
        self._added = (self._added + 1) & 0xFFFF
        self._outstanding += 1
        return True

    def publish(self) -> bool:
        """Let the device see what was added; return whether it wants a notification for it (2.7.10)."""
        added = self._added
        before = self._published
        if added == before:
            return False
        atomics.store_release(self._avail, 1, added)
        atomics.full_fence()  # the index before the device's wish: else both sides wait for each other
        self._published = added
        if not self._event_idx:
            return not self._used_head[0] & _NO_NOTIFY
        event = self._used_head[2 + 4 * self._size]
        return ((added - event - 1) & 0xFFFF) < ((added - before) & 0xFFFF)

    def reap(self, most: int) -> list[tuple[object, int]]:
        """Take back up to ``most`` requests: each one's token, and the bytes the device says it wrote.

        Raises DeviceFailed if the device returns what is not outstanding, or more bytes than there was room for.
        """
        seen = self._seen
        ahead = (atomics.load_acquire(self._used_head, 1) - seen) & 0xFFFF
        if ahead > self._outstanding:
            raise DeviceFailed(f"the device returned {ahead} requests, of {self._outstanding} outstanding")
        done: list[tuple[object, int]] = []
        for _ in range(min(ahead, most)):
            at = 1 + 2 * (seen & self._mask)
            head = self._used_ring[at]
            written = self._used_ring[at + 1]
            token = self._tokens[head] if head < self._size else None
            if token is None:
                raise DeviceFailed(f"the device returned head {head}, which is not outstanding")
            if written > self._capacity[head]:
                raise DeviceFailed(
                    f"the device says it wrote {written} bytes into a request that takes {self._capacity[head]}"
                )
            self._tokens[head] = None
            chain = self._chains[head]
            if chain is None:
                self._free.append(head)
            else:
                self._free.extend(chain)
                self._chains[head] = None
            done.append((token, written))
            seen = (seen + 1) & 0xFFFF
        self._seen = seen
        self._outstanding -= len(done)
        return done

    def pending(self) -> bool:
        """Return whether the device gave something back that was not reaped."""
        return bool(atomics.load_acquire(self._used_head, 1) != self._seen)

    def arm(self, after: int = 1) -> bool:
        """Ask for an interrupt once ``after`` more requests are done; return whether one is done already."""
        if self._event_idx:
            self._avail[2 + self._size] = (self._seen + after - 1) & 0xFFFF
        else:
            self._avail[0] = 0
        atomics.full_fence()  # the wish before the index, against the same race
        return self.pending()

    def disarm(self) -> None:
        """Ask for no interrupts: the driver polls."""
        if not self._event_idx:
            self._avail[0] = _NO_INTERRUPT
