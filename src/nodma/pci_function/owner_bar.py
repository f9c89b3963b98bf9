"""Where the BAR of a shared pool's owner is: what a function knows of it that has no window BAR itself.

A VMM tells each of its vfio-user servers by DMA_MAP of the memory that a device could access: the guest's, and the
mappable BARs of other functions, these without a descriptor. A region without a descriptor, of exactly the pool's
size and aligned to it, may be the owner's BAR. Where there are several, the one that holds the queue that the driver
sets up is. Nothing is guessed: where that is not enough, there is no address.
"""

from __future__ import annotations


class OwnerBar:
    """Follows the owner's BAR, of ``size`` bytes. ``address`` is where it is, once :meth:`choose` has settled that."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.address: int | None = None
        self._regions: set[int] = set()
        self._others: set[int] = set()  # of these regions, those that were there beside the one that was it
        self._home: int | None = None  # where the driver set up queues; None: nowhere yet

    @property
    def known(self) -> int:
        """How many regions could be it."""
        return len(self._regions - self._others)

    @property
    def ambiguous(self) -> bool:
        """Whether it is gone, and several regions have come that could be it now."""
        return self._home is not None and self.address is None and self.known > 1

    def mapped(self, address: int, size: int) -> None:
        """Take note of a region without a descriptor."""
        if size != self.size or address % size:
            return
        self._regions.add(address)
        if self._home is None:
            return
        if address == self._home or (self.address is None and self.known == 1):
            self._take(address)
        elif self.address == self._home:
            self._others.add(address)
        else:  # that the first one that came was it is no longer sure
            self.address = None

    def unmapped(self, address: int, size: int) -> None:
        """Take note that a region is gone."""
        if size == self.size and address in self._regions:
            self._regions.discard(address)
            self._others.discard(address)
            if address == self.address:
                self.address = None

    def choose(self, queue: int) -> bool:
        """Settle on the region that holds the bus address of a queue; return whether it is in the one settled on."""
        region = queue // self.size * self.size
        if self.address is None and region in self._regions - self._others:
            self._home = region
            self._take(region)
        return self.address == region

    def _take(self, region: int) -> None:
        self.address = region
        if region == self._home:
            self._others = self._regions - {region}

    def forget_choice(self) -> None:
        """Let the next queue settle it anew: the driver has none any more."""
        self.address = None
        self._others.clear()
        self._home = None

    def clear(self) -> None:
        """Forget it all: the VMM is gone."""
        self.forget_choice()
        self._regions.clear()
