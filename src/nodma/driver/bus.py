"""What a driver needs of the bus that its device sits on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from nodma.driver.pool_partition import PoolPartition
from nodma.window import Window


class PciPeer(Protocol):
    """What can be seen of a PCI function, one's own or another of the bus. Offsets and counts are bytes."""

    place: tuple[int, int]
    """Device and function number."""

    def read_config(self, offset: int, count: int) -> bytes:
        """Read configuration space."""

    def bar_sizes(self) -> Mapping[int, int]:
        """Return the size of each BAR that exists."""

    def map_bar(self, bar: int, offset: int, length: int) -> Window:
        """Map a part of a BAR, which begins on a page; the window is the caller's."""


class PciBus(PciPeer, Protocol):
    """One PCI function, as its driver reaches it."""

    def enable(self) -> None:
        """Ensure that the BARs have addresses and decode them."""

    def peer(self, device: int, function: int) -> PciPeer | None:
        """Return another function of the same bus; None if there is none."""

    def partition(self, owner: PciPeer, bar: int, offset: int, length: int) -> PoolPartition | None:
        """Return this function's part of a region in another's BAR.

        None if nobody divides the region up: then no two functions can be driven in it.
        """

    def read_bar(self, bar: int, offset: int, count: int) -> bytes:
        """Read a register of 1, 2, 4 or 8 bytes."""

    def write_bar(self, bar: int, offset: int, data: bytes) -> None:
        """Write a register; the device has acted on it when this returns."""

    def post_bar(self, bar: int, offset: int, data: bytes) -> None:
        """Write a register, and do not wait for the device."""

    def enable_msix(self, vectors: int) -> list[int]:
        """Turn MSI-X on, and give an eventfd, which the bus owns, for each of the first ``vectors``."""

    def close(self) -> None:
        """Let the function go."""
