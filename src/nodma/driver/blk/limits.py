"""What a disk's configuration allows, and how large queues and requests are made within it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

from nodma.errors import ProbeError
from nodma.ring import RingLayout
from nodma.spec.virtio import Descriptor
from nodma.spec.virtio_blk import SECTOR, BlkConfig, BlkFeature, BlkRequest

CELL: Final = 32
"""Bytes that a request has beside its data: the header, and after it the status."""
STATUS_AT: Final = BlkRequest.size
BESIDE_DATA: Final = 2
"""Parts of a request beside its data: header and status."""
POOL_SHARE: Final = 4
"""A request takes at most this fraction of the pool, whatever the device would take."""
_RING_SHARE: Final = 4
"""Rings, cells and indirect tables take at most this fraction of the region."""
_MAX_QUEUE: Final = 256
_MAX_SEGMENTS: Final = 1022
"""With header and status, what a device takes in one chain."""
_ANY_SIZE: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Limits:
    """What the device says of its requests: ``segments`` parts of ``size_max`` bytes each, in ``queues`` queues."""

    segments: int
    size_max: int
    queues: int

    @classmethod
    def read(cls, config: BlkConfig, features: int) -> Self:
        """Return the limits in ``config``, with defaults for those that were not negotiated (5.2.5).

        Raises ProbeError for limits that leave no room for a sector.
        """
        segments = config.seg_max if features & BlkFeature.SEG_MAX.mask else 1
        size_max = config.size_max if features & BlkFeature.SIZE_MAX.mask else _ANY_SIZE
        queues = config.num_queues if features & BlkFeature.MQ.mask else 1
        if segments < 1 or size_max < SECTOR or queues < 1:
            raise ProbeError(
                f"no request fits this device's limits: seg_max {segments}, size_max {size_max}, {queues} queues"
            )
        return cls(min(segments, _MAX_SEGMENTS), size_max, queues)


def queue_entries(depth: int, queues: int, parts: int, *, limit: int, room: int) -> int:
    """Return the size of each queue: what ``depth`` needs, if that leaves most of ``room`` (bytes) to the pool.

    ``limit`` is the device's; ``parts`` are the entries of an indirect table, 0 without.
    """
    entries = min(_MAX_QUEUE, limit, 1 << max(2, (depth - 1).bit_length()))
    each = CELL + Descriptor.size * parts
    share = room // _RING_SHARE // queues
    while entries > 2 and RingLayout.packed_at(0, entries).end + each * entries > share:
        entries //= 2
    return entries
