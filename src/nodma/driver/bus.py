"""What a driver needs of the bus that its device sits on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from nodma.window import Window


class PciBus(Protocol):
    """One PCI function, as its driver reaches it. Offsets and counts are bytes."""

    def enable(self) -> None:
        """See to it that the BARs have addresses and decode them."""

    def read_config(self, offset: int, count: int) -> bytes:
        """Read configuration space."""

    def bar_sizes(self) -> Mapping[int, int]:
        """Give the size of each BAR that exists."""

    def read_bar(self, bar: int, offset: int, count: int) -> bytes:
        """Read a register of 1, 2, 4 or 8 bytes."""

    def write_bar(self, bar: int, offset: int, data: bytes) -> None:
        """Write a register; the device has acted on it when this returns."""

    def post_bar(self, bar: int, offset: int, data: bytes) -> None:
        """Write a register, and do not wait for the device."""

    def map_bar(self, bar: int) -> Window:
        """Map a BAR; the window is the caller's."""

    def enable_msix(self, vectors: int) -> list[int]:
        """Turn MSI-X on, and give an eventfd, which the bus owns, for each of the first ``vectors``."""

    def close(self) -> None:
        """Let the function go."""
