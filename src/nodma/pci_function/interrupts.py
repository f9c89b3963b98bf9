"""Interrupts of a PCI function: INTx and MSI-X, masked and pending, delivered by eventfd.

The VMM gives an eventfd for each vector. With QEMU the MSI-X table stays on its side; a client that does
write the table through the register BAR finds it working as well: assigning an eventfd unmasks the
vector, a later write of its vector control decides.

Signalling must not block, and eventfds come non-blocking (``nodma.vfio_user``). But the VMM shares them: it can fill
one and make it blocking again, and no check before a write, nor any flag of a write, prevents that. A write that then
waits is interrupted by a signal, on the main thread by the tick of :mod:`nodma.loop`. No honest VMM does that: one that
did is given no interrupts any more until it assigns eventfds anew, so that it can delay the device once, and not once a
vector.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from nodma.spec.pci import MSIX_VECTOR_MASKED, MsixEntry

log = logging.getLogger(__name__)

_PBA_WORD: Final = 8


class Interrupts:
    """The interrupts of a function with ``vectors`` MSI-X vectors. It owns the eventfds it is given."""

    def __init__(self, vectors: int) -> None:
        self.vectors = vectors
        self.table = bytearray(MsixEntry.size * vectors)
        self.delivered = 0
        """Interrupts that were signalled."""
        self.paused_queues: Callable[[], AbstractContextManager[None]] = nullcontext
        """Entered around changes that a queue's thread, which signals an eventfd directly, must not see halfway."""
        self.close_fds: Callable[[list[int]], None] = close_all
        """Closes eventfds of a client's, which can take forever: whoever has clients gives what can bear that."""
        self._eventfds: list[int] = [-1] * vectors
        self._masked = [False] * vectors
        self._pending: set[int] = set()
        self._msix_on = False
        self._function_mask = False
        self._intx_fd = -1
        self._intx_masked = False
        self._intx_disabled = False
        self._line = False
        self._err_fd = -1
        self.reset()

    def reset(self) -> None:
        """Go to the state after reset; the eventfds stay, they are the VMM's wiring and no device state."""
        self._msix_on = self._function_mask = False
        self._pending.clear()
        self._line = self._intx_masked = self._intx_disabled = False
        for vector in range(self.vectors):
            MsixEntry(self.table, vector * MsixEntry.size).vector_control = MSIX_VECTOR_MASKED

    def close(self) -> None:
        """Close every eventfd."""
        self.assign_vectors(0, [-1] * self.vectors)
        self.assign_intx(-1)
        self.assign_err(-1)

    @property
    def msix_on(self) -> bool:
        """Whether MSI-X is enabled, and INTx thereby not used."""
        return self._msix_on

    def set_msix(self, *, on: bool, function_mask: bool) -> None:
        """Follow the MSI-X message control register."""
        self._msix_on, self._function_mask = on, function_mask
        self._deliver_pending()

    def set_intx_disable(self, disabled: bool) -> None:
        """Follow the command register's Interrupt Disable."""
        self._intx_disabled = disabled
        self._signal_intx()

    def assign_vectors(self, start: int, eventfds: list[int]) -> None:
        """Wire the vectors from ``start`` on to eventfds, or to nothing where -1 stands."""
        with self.paused_queues():
            end = start + len(eventfds)
            old, self._eventfds[start:end] = self._eventfds[start:end], eventfds
            self._masked[start:end] = [False] * len(eventfds)
            self._close(old)
            self._deliver_pending()

    def assign_intx(self, fd: int) -> None:
        """Wire INTx to an eventfd, or to nothing if it is -1."""
        old, self._intx_fd = self._intx_fd, fd
        self._close([old])
        self._intx_masked = False
        self._signal_intx()

    def assign_err(self, fd: int) -> None:
        """Take the eventfd of the error interrupt. It is never signalled: QEMU would stop the machine."""
        old, self._err_fd = self._err_fd, fd
        self._close([old])

    def mask_vectors(self, start: int, count: int, masked: bool) -> None:
        """Mask or unmask vectors; what came while they were masked is delivered then."""
        with self.paused_queues():
            self._masked[start : start + count] = [masked] * count
            self._deliver_pending()

    def mask_intx(self, masked: bool) -> None:
        """Mask INTx, or unmask it, whereupon a line that is still asserted signals again."""
        self._intx_masked = masked
        self._signal_intx()

    def raise_vector(self, vector: int) -> None:
        """Signal an MSI-X vector, or leave it pending while it is masked."""
        if vector >= self.vectors:  # NO_VECTOR, or one that does not exist
            return
        if self._masked[vector] or self._function_mask:
            self._pending.add(vector)
            return
        self._signal(self._eventfds[vector])

    def eventfd_if_unmasked(self, vector: int) -> int:
        """Return the eventfd that signals a vector without asking here, until something changes; else -1."""
        if not self._msix_on or self._function_mask or vector >= self.vectors or self._masked[vector]:
            return -1
        return self._eventfds[vector]

    def set_line(self, asserted: bool) -> None:
        """Assert or de-assert INTx."""
        self._line = asserted
        self._signal_intx()

    def trigger_intx(self) -> None:
        """Signal INTx once, because the VMM asks for it."""
        self._signal(self._intx_fd)

    def pending_bits(self) -> bytes:
        """Return the pending bit array."""
        bits = sum(1 << vector for vector in self._pending)
        return bits.to_bytes(-(-self.vectors // (8 * _PBA_WORD)) * _PBA_WORD, "little")

    def write_table(self, offset: int, data: bytes) -> None:
        """Write into the MSI-X table, and follow the vector controls that were touched."""
        self.table[offset : offset + len(data)] = data
        with self.paused_queues():
            for vector in range(offset // MsixEntry.size, -(-(offset + len(data)) // MsixEntry.size)):
                control = vector * MsixEntry.size + MsixEntry.vector_control.offset
                if offset < control + MsixEntry.vector_control.size and offset + len(data) > control:
                    self.mask_vectors(vector, 1, bool(self.table[control] & MSIX_VECTOR_MASKED))

    def _deliver_pending(self) -> None:
        if self._msix_on and not self._function_mask:
            for vector in [vector for vector in sorted(self._pending) if not self._masked[vector]]:
                self._pending.discard(vector)
                self._signal(self._eventfds[vector])

    def _signal_intx(self) -> None:
        """Signal an asserted line, and mask it until the VMM unmasks: INTx is auto-masked in VFIO."""
        if self._line and not (self._intx_masked or self._intx_disabled or self._msix_on) and self._intx_fd >= 0:
            self._intx_masked = True
            self._signal(self._intx_fd)

    def _signal(self, fd: int) -> None:
        if fd >= 0:
            try:
                os.eventfd_write(fd, 1)
                self.delivered += 1
            except InterruptedError:
                self.give_up()
            except OSError:  # full, or not an eventfd: whoever gave it loses the signal, not we
                pass

    def give_up(self) -> None:
        """Signal no eventfd any more that is assigned now: the client made a full one blocking."""
        log.warning("client made a full eventfd blocking: no more interrupts until it assigns eventfds anew")
        with self.paused_queues():
            old = [*self._eventfds, self._intx_fd]
            self._eventfds = [-1] * self.vectors
            self._intx_fd = -1
            self._close(old)

    def _close(self, fds: list[int]) -> None:
        if open_fds := [fd for fd in fds if fd >= 0]:
            self.close_fds(open_fds)


def close_all(fds: list[int]) -> None:
    """Close descriptors, however long that takes."""
    for fd in fds:
        os.close(fd)
