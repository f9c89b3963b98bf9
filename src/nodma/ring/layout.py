"""Where the three parts of a split virtqueue lie in a window."""

from __future__ import annotations

from dataclasses import dataclass

from nodma.errors import BadRing, OutsideAddress
from nodma.spec.virtio import (
    AVAIL_ALIGN,
    DESC_ALIGN,
    MAX_QUEUE_SIZE,
    USED_ALIGN,
    avail_ring_bytes,
    desc_table_bytes,
    used_ring_bytes,
)


@dataclass(frozen=True, slots=True)
class RingLayout:
    """A queue of ``size`` entries: offsets in the window, in bytes, of its three parts."""

    size: int
    desc: int
    avail: int
    used: int

    @classmethod
    def packed_at(cls, offset: int, size: int) -> RingLayout:
        """Lay the parts one after the other from ``offset`` on, which is a multiple of 16."""
        avail = offset + desc_table_bytes(size)
        used = -(-(avail + avail_ring_bytes(size)) // USED_ALIGN) * USED_ALIGN
        return cls(size, offset, avail, used)

    @property
    def end(self) -> int:
        """The first byte after the used ring."""
        return self.used + used_ring_bytes(self.size)

    def check(self, first: int, limit: int, base: int = 0) -> None:
        """Raise BadRing unless the queue is one that 2.7 allows and lies in ``[first, limit)`` of the window.

        ``base`` is added to what the message says, to name addresses as the driver knows them.
        """
        if not 0 < self.size <= MAX_QUEUE_SIZE or self.size & (self.size - 1):
            raise BadRing(f"a queue of {self.size} entries: must be a power of two up to {MAX_QUEUE_SIZE}")
        for part, offset, length, align in (
            ("descriptor table", self.desc, desc_table_bytes(self.size), DESC_ALIGN),
            ("available ring", self.avail, avail_ring_bytes(self.size), AVAIL_ALIGN),
            ("used ring", self.used, used_ring_bytes(self.size), USED_ALIGN),
        ):
            if offset < first or offset + length > limit:
                raise OutsideAddress(
                    f"the {part} of {length} bytes at {base + offset:#x} is outside the window"
                    f" [{base + first:#x}, {base + limit:#x})",
                    base + offset,
                    length,
                )
            if offset % align:
                raise BadRing(f"the {part} at {base + offset:#x} is not aligned to {align} bytes")
