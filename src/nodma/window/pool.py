"""The bounce pool: the driver's end of the window, in slots, as Linux's SWIOTLB cuts it.

A buffer that is to reach the device is *mapped*: slots are taken, and what the device may read is copied
in. When the device is done it is *unmapped*: what the device wrote is copied out, and the slots are free
again. Whatever of those slots the caller did not give is zeroed first, so that the device never sees, and
the caller never gets, what an earlier user left there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from nodma.errors import PoolTooSmall, UsageError
from nodma.window.window import Window

SLOT: Final = 2048
"""Bytes of a slot (IO_TLB_SIZE)."""
SEGMENT_SLOTS: Final = 128
"""Slots of a segment (IO_TLB_SEGSIZE); no mapping crosses into another."""
PAGE: Final = 4096
"""Mappings of a page or more begin on one where the pool has room for that."""

_PAGE_STARTS: Final = int("01" * (SEGMENT_SLOTS * SLOT // PAGE), 2)
_ZEROS: Final = bytes(SLOT * SEGMENT_SLOTS)

ReadBuffer = bytes | bytearray | memoryview
WriteBuffer = bytearray | memoryview


class Direction(Enum):
    """Who reads a mapping and who writes it."""

    TO_DEVICE = "to device"
    FROM_DEVICE = "from device"
    BIDIRECTIONAL = "bidirectional"


@dataclass(slots=True)
class PoolStats:
    """What went through a pool since it was made. Slots are 2 KiB, the rest bytes or counts."""

    slots: int = 0
    used: int = 0
    peak: int = 0
    maps: int = 0
    unmaps: int = 0
    full: int = 0
    """How often a mapping had to wait for slots."""
    bytes_in: int = 0
    """Copied towards the device."""
    bytes_out: int = 0
    """Copied back."""


class Mapping:
    """Slots that one buffer has. ``offset`` (in the window) and ``length`` are bytes."""

    __slots__ = ("_bits", "_segment", "direction", "length", "offset", "slots", "view")

    def __init__(
        self, segment: int, bits: int, slots: int, offset: int, view: memoryview, direction: Direction
    ) -> None:
        self._segment = segment
        self._bits = bits
        self.slots = slots
        self.offset = offset
        self.view = view
        self.length = len(view)
        self.direction = direction


class BouncePool:
    """Slots between ``start`` and ``start + length`` of a window.

    ``reclaim`` is called when the pool is full: it waits until the device gave something back, and
    unmaps it. Without one, :meth:`map` waits for another thread to unmap.
    """

    def __init__(self, window: Window, start: int, length: int, *, reclaim: Callable[[], None] | None = None) -> None:
        first = -(-start // SLOT)
        count = (start + length) // SLOT - first
        if count < 1 or start < 0 or start + length > window.size:
            raise UsageError(f"no slot of {SLOT} bytes fits between {start:#x} and {start + length:#x} of the window")
        self.window = window
        self.reclaim = reclaim
        self.stats = PoolStats(slots=count)
        self._slots_at = range(first * SLOT, (first + count) * SLOT)
        # One bit a slot, set while it is free. A segment begins on a multiple of its own size, so that
        # a slot's place in it tells how the slot is aligned.
        self._lead = first % SEGMENT_SLOTS
        self._segment0 = (first - self._lead) * SLOT
        everything = ((1 << count) - 1) << self._lead
        self._free: list[int] = []
        while everything:
            self._free.append(everything & ((1 << SEGMENT_SLOTS) - 1))
            everything >>= SEGMENT_SLOTS
        self._roomy = set(range(len(self._free)))  # the segments with any slot free
        self._cursor = 0
        self.max_mapping: Final = SLOT * max(bits.bit_count() for bits in self._free)
        """Bytes of the largest mapping that this pool can hold."""
        self._freed = threading.Condition()

    def try_map(self, buffer: ReadBuffer | int, direction: Direction) -> Mapping | None:
        """Map ``buffer``, or that many bytes of zeros; None if the pool has no room for it now.

        Raises PoolTooSmall if it never will have.
        """
        length = buffer if isinstance(buffer, int) else len(buffer)
        if not 0 < length <= self.max_mapping:
            raise PoolTooSmall(
                f"a mapping of {length} bytes does not fit: this pool takes 1 to {self.max_mapping} bytes at once"
            )
        with self._freed:
            mapping = self._take(length, direction)
        if mapping is None:
            return None
        if isinstance(buffer, int) or direction is Direction.FROM_DEVICE:
            self._zero(mapping, 0)
        else:
            self.sync_for_device(mapping, buffer)
            self._zero(mapping, length)
        return mapping

    def map(self, buffer: ReadBuffer | int, direction: Direction) -> Mapping:
        """Map ``buffer``, or that many bytes of zeros, and wait for room as long as it takes (DMB-D3)."""
        while True:
            seen = self.stats.unmaps
            mapping = self.try_map(buffer, direction)
            if mapping is not None:
                return mapping
            self.stats.full += 1
            if self.reclaim:
                self.reclaim()
            else:
                with self._freed:
                    while self.stats.unmaps == seen:
                        self._freed.wait()

    def holds(self, mapping: Mapping) -> bool:
        """Whether a mapping's slots are this pool's."""
        return mapping.offset in self._slots_at

    def sync_for_device(self, mapping: Mapping, buffer: ReadBuffer) -> None:
        """Copy ``buffer`` to the beginning of a mapping, for the device to read."""
        mapping.view[: len(buffer)] = buffer
        self.stats.bytes_in += len(buffer)

    def sync_for_cpu(self, mapping: Mapping, into: WriteBuffer) -> None:
        """Copy the beginning of a mapping, which the device wrote, to ``into``."""
        length = len(into)
        into[:] = mapping.view[:length]
        self.stats.bytes_out += length

    def unmap(self, mapping: Mapping, into: WriteBuffer | None = None) -> None:
        """Free the slots; first copy what the device wrote to ``into``, if given."""
        if into is not None:
            self.sync_for_cpu(mapping, into)
        with self._freed:
            bits = self._free[mapping._segment]
            if bits & mapping._bits:
                raise UsageError(f"the mapping at {mapping.offset:#x} is already unmapped")
            self._free[mapping._segment] = bits | mapping._bits
            self._roomy.add(mapping._segment)
            self.stats.used -= mapping.slots
            self.stats.unmaps += 1
            self._freed.notify_all()

    def _zero(self, mapping: Mapping, given: int) -> None:
        """Clear the mapping's slots from byte ``given`` on, also beyond its length to the slot's end."""
        begin, end = mapping.offset + given, mapping.offset + mapping.slots * SLOT
        if end > begin:
            self.window.bytes[begin:end] = _ZEROS[: end - begin]

    def _take(self, length: int, direction: Direction) -> Mapping | None:
        """Find free slots: from where the last were found on, then in every other segment."""
        slots = -(-length // SLOT)
        prefer = _PAGE_STARTS if length >= PAGE else -1
        found = self._search(self._cursor, slots, prefer)
        if not found:
            found = next(filter(None, (self._search(segment, slots, prefer) for segment in self._roomy)), None)
        if not found and prefer != -1:
            found = next(filter(None, (self._search(segment, slots, -1) for segment in self._roomy)), None)
        if not found:
            return None
        segment, start = found
        bits = ((1 << slots) - 1) << start
        self._free[segment] ^= bits
        if not self._free[segment]:
            self._roomy.discard(segment)
        self._cursor = segment
        stats = self.stats
        stats.maps += 1
        stats.used += slots
        if stats.used > stats.peak:
            stats.peak = stats.used
        offset = self._segment0 + (segment * SEGMENT_SLOTS + start) * SLOT
        return Mapping(segment, bits, slots, offset, self.window.bytes[offset : offset + length], direction)

    def _search(self, segment: int, slots: int, starts: int) -> tuple[int, int] | None:
        """Find a run of ``slots`` free ones in a segment that begins at one of ``starts``."""
        runs = self._free[segment]
        have = 1
        while have < slots and runs:
            step = min(have, slots - have)
            runs &= runs >> step
            have += step
        runs &= starts
        return (segment, (runs & -runs).bit_length() - 1) if runs else None
