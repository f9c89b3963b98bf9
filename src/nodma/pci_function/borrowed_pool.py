"""A function that has its pool in the BAR of another, the owner: finds it there, and follows it."""

from __future__ import annotations

from nodma.errors import NodmaError
from nodma.pci_function.owner_bar import OwnerBar
from nodma.pci_function.queues import VirtQueue
from nodma.pci_function.shared_window import SharedWindow
from nodma.pci_function.virtio import VirtioCore


class BorrowedPool:
    """Keeps ``core`` in the owner's window, of which the first ``length`` bytes are the region."""

    def __init__(self, core: VirtioCore, memory: SharedWindow, owner: int, length: int) -> None:
        self._core = core
        self._memory = memory
        self._owner = owner
        self._length = length
        self._bar = OwnerBar(memory.window.size)
        core.before_enable = self._before_enable

    def mapped(self, address: int, size: int) -> None:
        """The VMM has a region without a descriptor; it may be the owner's BAR."""
        self._bar.mapped(address, size)
        self._follow()

    def unmapped(self, address: int, size: int) -> None:
        """That region is gone: if it was the owner's BAR, that decodes no address, and requests wait."""
        self._bar.unmapped(address, size)
        self._follow()

    def clear(self) -> None:
        """The VMM is gone."""
        self._bar.clear()
        self._follow()

    def _before_enable(self, queue: VirtQueue) -> str:
        """Settle where the pool is; say why the queue cannot be enabled, if so."""
        try:
            self._look()
        except NodmaError as error:
            return str(error)
        if not self._bar.choose(queue.desc):
            return (
                f"queue {queue.queue.name} at {queue.desc:#x} is in none of the {self._bar.known} regions of"
                f" {self._bar.size:#x} bytes reported by the VMM that could be the BAR of function {self._owner},"
                f" which owns the pool"
            )
        self._core.rebase(self._core.profile.address_range(self._bar.address, self._length))
        return ""

    def _look(self) -> None:
        """See which window there is now. Queues that are in use stay where they are."""
        if not self._in_use:
            self._bar.forget_choice()
            self._memory.refresh()
            self._core.window = self._memory.window
        elif self._memory.stale:
            raise NodmaError(f"function {self._owner} now has a different window from the one that holds the queues")

    @property
    def _in_use(self) -> bool:
        return any(queue.enabled for queue in self._core.queues)

    def _follow(self) -> None:
        if not self._in_use:
            return
        if self._bar.ambiguous:
            self._core.fail(f"the BAR of function {self._owner} moved, and {self._bar.known} regions could be it now")
        elif self._bar.address is not None and self._core.address_range is None:
            try:
                self._look()
            except NodmaError as error:
                self._core.fail(str(error))
        self._core.rebase(self._core.profile.address_range(self._bar.address, self._length))
