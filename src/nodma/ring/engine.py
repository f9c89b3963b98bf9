"""The engine of a queue's requests: off the ring in batches, to whoever handles them, and back.

An engine is served by calls of :meth:`QueueEngine.serve`, or by a thread of its own that runs :meth:`QueueEngine.loop`,
compiled without Python's lock. This file runs compiled by Cython, and as it stands when it is not, like the ring.
"""

from __future__ import annotations

import select

import nodma.ring.atomics as atomics
import nodma.ring.syscalls as syscalls
from nodma.errors import BadRing
from nodma.ring.device_end import DeviceRing
from nodma.ring.state import BATCH, BUSY, FAULT, IDLE, LARGE_BATCH, PAUSED, TURNS

_IDLE, _BUSY, _FAULT, _PAUSED = IDLE, BUSY, FAULT, PAUSED
_BATCH, _LARGE_BATCH, _TURNS = BATCH, LARGE_BATCH, TURNS
_FOREVER = -1
_HOLD_MILLISECONDS = 100  # between two looks whether a pause is over that began in a system call, if nobody wakes us
_POLLS_PER_CLOCK_READ = 64  # at the ring, between two looks at the clock
_SPIN_BEFORE_YIELD_NS = 10_000  # for so long nobody else gets the core; the driver may be waiting for it
_SHRINK = 16  # what a fruitless wait for the ring costs at least, as a part of the most


class QueueEngine:
    """The engine of the requests of ``ring``. Subclasses handle a batch.

    ``signal_fd`` is the eventfd that interrupts the driver, or -1: then ``wanted`` is set when it wants an interrupt,
    and ``wakeup_fd``, another eventfd, is signalled by the loop.

    Whoever shares ``signal_fd`` can fill it and make it blocking. Then the thread waits in the write (``signalling``)
    until a signal interrupts it, and sets ``gave_up``: that eventfd is not written to any more.
    """

    def __init__(self, ring: DeviceRing) -> None:
        self.ring = ring
        self.batch = ring.make_batch(_LARGE_BATCH)
        self.signal_fd = -1
        self.wakeup_fd = -1
        self.wanted = False
        self.signalling = False
        self.gave_up = False
        self.requests = 0
        """Requests taken."""
        self.interrupts = 0
        """Interrupts signalled here."""
        self.outstanding = 0
        """Requests that are being handled elsewhere, and were not given back."""
        self._pause = memoryview(bytearray(2)).cast("H")
        self._call = memoryview(bytearray(2)).cast("H")
        self._cancel = memoryview(bytearray(2)).cast("H")
        self._max_poll_ns = 0
        self._poll_ns = 0
        self._epoll_object = select.epoll()
        self._epoll = syscalls.handle(self._epoll_object)

    # To be overridden

    def handle(self, count: int) -> None:
        """Handle the ``count`` chains of the batch: each is returned to the ring, or outstanding from then on."""

    def helper_main(self) -> None:
        """Handle what :meth:`handle` left outstanding, in a thread that may wait, until the engine is closed."""

    def collect(self) -> int:
        """Return to the ring what was handled elsewhere, without waiting; return how many."""
        return 0

    # For whoever serves the queue

    def serve(self, turns: int) -> int:
        """Handle up to ``turns`` batches; return IDLE, BUSY or FAULT."""
        return self.take_turns(turns)

    def arm(self) -> bool:
        """Ask for a notification of the next request; return whether one came before that took effect."""
        return self.ring.arm()

    def disarm(self) -> None:
        """Ask for no notifications."""
        self.ring.disarm()

    def rebase(self, base: int) -> None:
        """Follow the window to another bus address."""
        self.ring.rebase(base)

    def explain(self) -> BadRing:
        """Return what was wrong, after FAULT."""
        return self.ring.explain(self.batch)

    # For a thread of its own

    def watch(self, fd: int) -> None:
        """Have the loop wake up at each signal of an eventfd, which it never reads: whoever has it may do with it
        what they want, and cannot keep the loop from waiting or waking.
        """
        self._epoll_object.register(fd, select.EPOLLIN | select.EPOLLET)

    def poll_for(self, nanoseconds: int) -> None:
        """Have the loop look for requests for so long before it waits for a notification."""
        self._max_poll_ns = self._poll_ns = nanoseconds

    def start_helpers(self) -> None:
        """Leave what would make the queue wait to threads that run :meth:`helper_main`, from now on."""

    def drain(self, seconds: float) -> bool:  # noqa: ARG002 - for those that leave anything outstanding
        """Wait up to ``seconds`` for all that is outstanding, and give it back; return whether nothing is any more.

        The loop does not run. What was cancelled is not given back.
        """
        return True

    def stop_helpers(self) -> None:
        """Have :meth:`helper_main` return, in every thread that runs it. Nothing is outstanding."""

    def pause(self) -> None:
        """Ask the loop to end; it may have to be woken, by a descriptor that it watches."""
        self._pause[0] = 1
        atomics.full_fence()  # the wish before whoever looks at in_call: see end_call

    def resume(self) -> None:
        """Let the loop be entered again, or go on; if it was in a call when it was paused, it has to be woken."""
        self._pause[0] = 0

    def in_call(self) -> bool:
        """Return whether the loop is in a system call that may wait for a disk.

        If a pause was asked for before, the loop counts as paused: when the call returns, it waits for :meth:`resume`
        or :meth:`cancel` before it touches anything.
        """
        return atomics.load_acquire(self._call, 0) != 0

    def cancel(self) -> None:
        """Have nothing begun that has not begun, and end the loop and what is outstanding as soon as that can be.

        What is cancelled is not given back. The engine cannot be used again.
        """
        self._cancel[0] = 1
        self.pause()

    def cancelled(self) -> bool:
        """Return whether :meth:`cancel` was called."""
        return self._is_cancelled()

    def close(self) -> None:
        """Close what the engine opened. No thread is in it."""
        self._epoll_object.close()

    def take_turns(self, turns: int) -> int:
        """Do what :meth:`serve` does."""
        for _ in range(turns):
            count = self.ring.fetch_chains(self.batch, max(_BATCH, self.ring.available() // 2))
            if count <= 0:
                return _FAULT if count else _IDLE
            self.handle(count)
            self.requests += count
            if self._is_cancelled():
                return _IDLE
            self.publish_and_interrupt()
        return _BUSY

    def publish_and_interrupt(self) -> None:
        """Publish what was given back, and interrupt the driver if it wants that."""
        if self.ring.publish():
            if self.signal_fd >= 0:
                self.interrupts += 1
                self.signalling = True
                if syscalls.signal(self.signal_fd) == -syscalls.EINTR:
                    self.signal_fd = -1
                    self.gave_up = True
                    syscalls.signal(self.wakeup_fd)
                self.signalling = False
            else:
                self.wanted = True

    def loop(self) -> int:
        """Serve until something is wrong or a pause is asked for; return FAULT or PAUSED."""
        while not self._paused():
            state = self.take_turns(_TURNS)
            if state == _FAULT:
                return _FAULT
            if self._is_cancelled():
                break
            if self.outstanding:
                self.collect()
            if self.wanted:
                syscalls.signal(self.wakeup_fd)
            if state == _IDLE and not self._poll_ring() and not self.ring.arm():
                self._wait()
        return _PAUSED

    def begin_call(self) -> None:
        """Say that the loop makes a system call that may wait for a disk. It touches nothing else until end_call."""
        atomics.store_release(self._call, 0, 1)

    def end_call(self) -> bool:
        """Say that the call has returned, and hold while a pause is asked for; return False if all was cancelled."""
        while True:
            atomics.store_release(self._call, 0, 0)
            atomics.full_fence()  # this before the wish: whoever pauses sees the call, or we see the pause
            if self._is_cancelled():
                return False
            if not self._paused():
                return True
            atomics.store_release(self._call, 0, 1)
            syscalls.wait(self._epoll, _HOLD_MILLISECONDS)

    def _is_cancelled(self) -> bool:
        return atomics.load_acquire(self._cancel, 0) != 0

    def _paused(self) -> bool:
        return atomics.load_acquire(self._pause, 0) != 0

    def _poll_ring(self) -> bool:
        """Look for the next request, for as long as polling is worth it; return whether it came."""
        if not self._poll_ns:
            return False
        begin = now = syscalls.now()
        while now - begin < self._poll_ns:
            for _ in range(_POLLS_PER_CLOCK_READ):
                if self.ring.pending() or self._paused():
                    return True
                syscalls.relax()
            if self.outstanding and self.collect():
                return True
            if now - begin > _SPIN_BEFORE_YIELD_NS:
                syscalls.give_way()
            now = syscalls.now()
        return False

    def _wait(self) -> None:
        """Wait for a notification, and learn from it: polling is worth it if the wait was short."""
        begin = syscalls.now()
        syscalls.wait(self._epoll, _FOREVER)
        self.ring.disarm()
        if self._max_poll_ns:
            if syscalls.now() - begin < self._max_poll_ns:
                self._poll_ns = min(2 * self._poll_ns, self._max_poll_ns)
            else:
                self._poll_ns = max(self._poll_ns // 2, self._max_poll_ns // _SHRINK)
