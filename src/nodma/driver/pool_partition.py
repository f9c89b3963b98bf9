"""Which part of a region a driver has for itself, and which it shares with the drivers of other functions."""

from __future__ import annotations

from dataclasses import dataclass

from nodma.errors import UsageError
from nodma.window import BouncePool, Window


@dataclass(frozen=True, slots=True)
class PoolPartition:
    """Bytes ``[begin, end)`` of ``window`` belong to this function only; ``common`` is for whoever needs more.

    Whoever partitioned the window maps and closes it.
    """

    window: Window
    begin: int
    end: int
    common: BouncePool


class SharedRegion:
    """A region, mapped once and divided up among ``users``, functions of one slot, driven by this process.

    Each has ``reservation`` bytes for itself, its rings among them; they lie at the region's beginning. The rest is
    one pool for all.
    """

    def __init__(self, window: Window, users: list[int], reservation: int | None = None) -> None:
        """Raises UsageError if the region is too small for that. By default reservations are half of it."""
        self.window = window
        self._users = users
        self.reservation = window.size // 2 // len(users) if reservation is None else reservation
        taken = self.reservation * len(users)
        if self.reservation < 1 or taken >= window.size:
            raise UsageError(
                f"{len(users)} reservations of {self.reservation} bytes leave nothing to share of a pool of"
                f" {window.size}: reserve less, or make the pool larger"
            )
        self.common = BouncePool(window, taken, window.size - taken)

    def partition(self, user: int) -> PoolPartition:
        """Return the part of a user."""
        begin = self._users.index(user) * self.reservation
        return PoolPartition(self.window, begin, begin + self.reservation, self.common)

    def close(self) -> None:
        """Unmap it."""
        self.window.close()
