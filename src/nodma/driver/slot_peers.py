"""What a bus knows of the functions beside one: nothing, unless they were opened together."""

from __future__ import annotations

from typing import Protocol

from nodma.driver.bus import PciPeer
from nodma.driver.pool_partition import PoolPartition


class SlotPeers(Protocol):
    """The other functions of a bus, as far as this process drives or sees them."""

    def peer(self, device: int, function: int) -> PciPeer | None:
        """Return another function; None if there is none."""

    def partition(self, user: PciPeer, owner: PciPeer, bar: int, offset: int, length: int) -> PoolPartition | None:
        """Return ``user``'s part of a region in ``owner``'s BAR; None if nobody divides it up."""

    def enabled(self, who: PciPeer) -> None:
        """Learn that a function's BARs decode addresses."""

    def gone(self, who: PciPeer) -> None:
        """Learn that a function was closed."""


class NoPeers:
    """Implements :class:`SlotPeers` for a function that was opened by itself."""

    def peer(self, device: int, function: int) -> PciPeer | None:  # noqa: ARG002 - the protocol's signature
        """Return None: there is no other function."""
        return None

    def partition(self, *_: object) -> PoolPartition | None:
        """Nobody divides anything up."""
        return None

    def enabled(self, who: PciPeer) -> None:
        """Nobody cares."""

    def gone(self, who: PciPeer) -> None:
        """Nobody cares."""
