"""How large a pool must be: slots for rings, and for what is in flight, as Linux's drivers map it.

A disk's request takes, beside its data: a slot for its header, one for its status, and, of more than one part as it
is, an indirect table. Each piece of data has slots of its own, which hold nothing else. With slots of a page a read of
4 KiB takes 16 KiB; with SWIOTLB's 2 KiB it takes 10.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nodma.errors import UsageError
from nodma.spec.profiles import MAX_POOL, MIN_POOL, PAGE, Profile
from nodma.spec.virtio import MAX_QUEUE_SIZE, Descriptor, avail_ring_bytes, desc_table_bytes, used_ring_bytes
from nodma.window import SLOT

LINUX_RING_ALIGN: Final = 64
"""Bytes to which Linux aligns the used ring of a virtio-pci device (SMP_CACHE_BYTES)."""
BESIDE_DATA: Final = 2
"""Parts of a disk's request beside its data: header and status."""
INBOUND_SHARE: Final = (3, 4)
"""Of a pool, what buffers that the device writes may take: the rest is for sending."""


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk and its load: ``depth`` requests in flight in all, of at most ``request`` bytes.

    ``queue_size`` is entries; the requests are no more than all queues have entries, for each takes one.
    """

    queues: int = 1
    depth: int = 128
    request: int = 4096
    queue_size: int = 256

    def __post_init__(self) -> None:
        if not 1 <= self.queue_size <= MAX_QUEUE_SIZE or self.queue_size & (self.queue_size - 1):
            raise UsageError(f"queue_size {self.queue_size}: it must be a power of two up to {MAX_QUEUE_SIZE}")
        if self.queues < 1 or self.depth < 1 or self.request < 1:
            raise UsageError(
                f"{self.queues} queues, depth {self.depth}, requests of {self.request} bytes: each must be 1 or more"
            )

    @property
    def in_flight(self) -> int:
        """Requests that the device has at most."""
        return min(self.depth, self.queues * self.queue_size)


@dataclass(frozen=True, slots=True)
class SlotDemand:
    """Slots of a device: for its rings, and at most for its requests; of these, for data that the device writes."""

    rings: int
    requests: int
    inbound: int

    @property
    def slots(self) -> int:
        """All of them: the peak that a driver counts."""
        return self.rings + self.requests


def slots_needed(disk: Disk, *, slot: int = SLOT, page: int = PAGE) -> SlotDemand:
    """Count the slots that a disk takes at most; ``slot`` and ``page`` are bytes, of the pool and of the guest."""
    per_page = _slots(min(page, disk.request), slot)
    whole, rest = divmod(disk.request, page)
    data = whole * per_page + (_slots(rest, slot) if rest else 0)
    parts = BESIDE_DATA + whole + bool(rest)
    table = _slots(Descriptor.size * parts, slot)
    each = data + BESIDE_DATA + table
    rings = disk.queues * _slots(_up(ring_bytes(disk.queue_size), page), slot)
    return SlotDemand(rings, disk.in_flight * each, disk.in_flight * (data + 1))


def ring_bytes(entries: int) -> int:
    """Bytes of a queue's rings, as Linux lays them out."""
    used = _up(desc_table_bytes(entries) + avail_ring_bytes(entries), LINUX_RING_ALIGN)
    return used + used_ring_bytes(entries)


def pool_for(needs: list[SlotDemand], profile: Profile, *, slot: int = SLOT) -> int:
    """Return the smallest window, a power of two, in which devices of these needs never wait for slots.

    Raises UsageError if none is large enough.
    """
    slots = sum(one.slots for one in needs)
    inbound = sum(one.inbound for one in needs)
    reserved = profile.address_range(0, 1)
    first = bool(reserved and reserved.first)  # where offset 0 is not an address, the first slot is lost
    part, whole = INBOUND_SHARE
    size = max(slots + first, -(-inbound * whole // part)) * slot
    pool = max(MIN_POOL, 1 << (size - 1).bit_length())
    if pool > MAX_POOL:
        raise UsageError(f"these devices need {size >> 20} MiB: a window has at most {MAX_POOL >> 30} GiB")
    return pool


def _slots(size: int, slot: int) -> int:
    return -(-size // slot)


def _up(size: int, align: int) -> int:
    return -(-size // align) * align
