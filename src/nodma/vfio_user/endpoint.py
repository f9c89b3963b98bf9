"""What a server needs of the device behind it: interfaces, so that any device can be served."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol


class RegionLike(Protocol):
    """A region: bytes, and whether it can be written and mapped."""

    @property
    def size(self) -> int: ...  # noqa: D102
    @property
    def writable(self) -> bool: ...  # noqa: D102
    @property
    def mappable(self) -> bool: ...  # noqa: D102


class InterruptsLike(Protocol):
    """The interrupts of a device; it owns the eventfds that it is given, and closes them by ``close_fds``."""

    close_fds: Callable[[list[int]], None]

    @property
    def vectors(self) -> int: ...  # noqa: D102
    def assign_vectors(self, start: int, eventfds: list[int]) -> None: ...  # noqa: D102
    def assign_intx(self, fd: int) -> None: ...  # noqa: D102
    def assign_err(self, fd: int) -> None: ...  # noqa: D102
    def mask_vectors(self, start: int, count: int, masked: bool) -> None: ...  # noqa: D102
    def mask_intx(self, masked: bool) -> None: ...  # noqa: D102
    def raise_vector(self, vector: int) -> None: ...  # noqa: D102
    def trigger_intx(self) -> None: ...  # noqa: D102


class WindowLike(Protocol):
    """The memory behind the mappable region."""

    @property
    def fd(self) -> int: ...  # noqa: D102


class Endpoint(Protocol):
    """What a server needs of a device. ``read`` and ``write`` raise UsageError for what is not there.

    ``notifiers`` are the parts of a region that a client may write to by eventfd: offset, size in bytes, the
    eventfd, which stays the endpoint's. ``dma_mapped`` and ``dma_unmapped`` report the regions that came without a
    descriptor: addresses and sizes. ``write_all`` writes region, offset, data in turn, up to the first that fails.
    ``tick`` is called about once a second while a client is there. ``detach`` is called again after it raised.
    """

    @property
    def regions(self) -> Mapping[int, RegionLike]: ...  # noqa: D102
    @property
    def interrupts(self) -> InterruptsLike: ...  # noqa: D102
    @property
    def window(self) -> WindowLike: ...  # noqa: D102
    @property
    def wakeup_fd(self) -> int:
        """An eventfd that asks for :meth:`service`, or -1."""

    @property
    def main_thread_must_interrupt(self) -> bool:
        """Whether what ``wakeup_fd`` asks for cannot wait some milliseconds."""

    def read(self, region: int, offset: int, count: int) -> bytes: ...  # noqa: D102
    def write(self, region: int, offset: int, data: bytes) -> None: ...  # noqa: D102
    def write_all(self, writes: Sequence[tuple[int, int, bytes]]) -> None: ...  # noqa: D102
    def paused_queues(self) -> AbstractContextManager[None]: ...  # noqa: D102
    def notifiers(self, region: int) -> Sequence[tuple[int, int, int]]: ...  # noqa: D102
    def service(self) -> bool: ...  # noqa: D102
    def finish(self, seconds: float) -> None: ...  # noqa: D102
    def reset(self) -> None: ...  # noqa: D102
    def dma_mapped(self, address: int, size: int) -> None: ...  # noqa: D102
    def dma_unmapped(self, regions: Mapping[int, int]) -> None: ...  # noqa: D102
    def tick(self) -> None: ...  # noqa: D102
    def detach(self) -> None: ...  # noqa: D102
