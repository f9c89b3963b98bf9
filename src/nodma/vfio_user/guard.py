"""What becomes of the guest memory that a client offers: nothing.

A vfio-user client reports the guest's memory to the server, and where it can, hands over a descriptor to map it by.
Such a descriptor is closed when it arrives (``nodma.vfio_user.descriptors``), before the message is even looked at. The
guard maps nothing, and keeps account: of addresses and sizes only, because the protocol has the server refuse overlaps.
"""

from __future__ import annotations

import errno
from bisect import bisect_left
from typing import Final

from nodma.spec.vfio_user import DEFAULT_MAX_DMA_MAPS, DmaFlag, UnmapFlag

_ADDRESSES: Final = 1 << 64
_MAP_FLAGS: Final = int(DmaFlag.READ | DmaFlag.WRITE)


class DmaGuard:
    """Account of a client's DMA regions. Sizes and addresses are bytes."""

    def __init__(self) -> None:
        self.descriptors_closed = 0
        """Descriptors that came with DMA_MAP since the process began, each closed at once."""
        self.maps = 0
        """DMA_MAP commands accepted since the process began."""
        self._starts: list[int] = []
        self._sizes: dict[int, int] = {}

    @property
    def regions(self) -> dict[int, int]:
        """The regions that the client now has mapped, size by address."""
        return dict(self._sizes)

    def map(self, flags: int, address: int, size: int) -> None:
        """Note a region. Raises OSError: EINVAL for one that cannot be, EEXIST if it overlaps, ENOSPC if too many."""
        if not size or address + size > _ADDRESSES or flags & ~_MAP_FLAGS:
            raise OSError(errno.EINVAL, f"invalid DMA_MAP of {size:#x} bytes at {address:#x}, flags {flags:#x}")
        at = bisect_left(self._starts, address)
        before = self._starts[at - 1] if at else None
        if (at < len(self._starts) and self._starts[at] < address + size) or (
            before is not None and before + self._sizes[before] > address
        ):
            raise OSError(errno.EEXIST, f"DMA_MAP of {size:#x} bytes at {address:#x} overlaps another region")
        if len(self._starts) >= DEFAULT_MAX_DMA_MAPS:
            raise OSError(errno.ENOSPC, f"more than {DEFAULT_MAX_DMA_MAPS} DMA regions")
        self._starts.insert(at, address)
        self._sizes[address] = size
        self.maps += 1

    def unmap(self, flags: int, address: int, size: int) -> None:
        """Forget a region, or all. Raises OSError: ENOENT if no region matches exactly, EINVAL, ENOTSUP."""
        if flags & UnmapFlag.GET_DIRTY_BITMAP:
            raise OSError(errno.ENOTSUP, "DMA_UNMAP asks for a bitmap of dirty pages, which is not supported")
        if flags & ~int(UnmapFlag.ALL):
            raise OSError(errno.EINVAL, f"DMA_UNMAP has unknown flags {flags:#x}")
        if flags & UnmapFlag.ALL:
            if address or size:
                raise OSError(errno.EINVAL, "DMA_UNMAP of all regions must have address and size 0")
            self.forget()
        elif self._sizes.get(address) != size:
            raise OSError(errno.ENOENT, f"DMA_UNMAP of {size:#x} bytes at {address:#x}: no such region")
        else:
            del self._sizes[address]
            del self._starts[bisect_left(self._starts, address)]

    def forget(self) -> None:
        """Forget every region: the client is gone."""
        self._starts.clear()
        self._sizes.clear()
