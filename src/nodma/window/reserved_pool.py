"""One function's share of a pool: its reserved slots, and what it gets of the slots that all functions share.

A function that floods the common slots takes nothing of what another has reserved. A mapping that fits an empty
reservation therefore always gets its turn, whatever the other functions do.
"""

from __future__ import annotations

from collections.abc import Callable

from nodma.errors import UsageError
from nodma.window.pool import BouncePool, Direction, Mapping, PoolStats, ReadBuffer, WriteBuffer


class ReservedPool:
    """Uses slots of ``own`` first, then of ``common``. Has the interface of a BouncePool; counts this share only.

    ``reclaim`` is called when neither has room: it waits until the device returns something, and unmaps it.
    """

    def __init__(self, own: BouncePool, common: BouncePool, *, reclaim: Callable[[], None]) -> None:
        """Raises UsageError if the two are not in the same window."""
        if own.window is not common.window:
            raise UsageError("a reservation and the common part of its pool must lie in the same window")
        self.own = own
        self.common = common
        self.reclaim = reclaim
        self.window = own.window
        self.stats = PoolStats(slots=own.stats.slots)
        """What this share did; ``slots`` are those reserved."""
        self.max_mapping = own.max_mapping
        """Bytes of the largest mapping: one that the reservation can hold."""

    def try_map(self, buffer: ReadBuffer | int, direction: Direction) -> Mapping | None:
        """Map as :meth:`BouncePool.try_map` does. Raises PoolTooSmall for what the reservation could never hold."""
        mapping = self.own.try_map(buffer, direction) or self.common.try_map(buffer, direction)
        if mapping is not None:
            stats = self.stats
            stats.maps += 1
            stats.used += mapping.slots
            stats.peak = max(stats.peak, stats.used)
            if not isinstance(buffer, int) and direction is not Direction.FROM_DEVICE:
                stats.bytes_in += mapping.length
        return mapping

    def map(self, buffer: ReadBuffer | int, direction: Direction) -> Mapping:
        """Map, and wait for room as long as it takes (DMB-D3)."""
        while (mapping := self.try_map(buffer, direction)) is None:
            self.stats.full += 1
            self.reclaim()
        return mapping

    def sync_for_device(self, mapping: Mapping, buffer: ReadBuffer) -> None:
        """Copy ``buffer`` to the beginning of a mapping, for the device to read."""
        self._of(mapping).sync_for_device(mapping, buffer)
        self.stats.bytes_in += len(buffer)

    def sync_for_cpu(self, mapping: Mapping, into: WriteBuffer) -> None:
        """Copy the beginning of a mapping, which the device wrote, to ``into``."""
        self._of(mapping).sync_for_cpu(mapping, into)
        self.stats.bytes_out += len(into)

    def unmap(self, mapping: Mapping, into: WriteBuffer | None = None) -> None:
        """Free the slots; first copy what the device wrote to ``into``, if given."""
        self._of(mapping).unmap(mapping, into)
        self.stats.used -= mapping.slots
        self.stats.unmaps += 1
        if into is not None:
            self.stats.bytes_out += len(into)

    def _of(self, mapping: Mapping) -> BouncePool:
        return self.own if self.own.holds(mapping) else self.common
