"""The virtio of a function: features, status, queues (virtio 1.4, chapters 2 and 3), and the policy.

What a driver must not do sets DEVICE_NEEDS_RESET, with a reason that is logged and kept; nothing is
touched until the driver resets the device.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Final

from nodma.device.base import Device, Engine
from nodma.errors import BadRing, OutsideAddress
from nodma.pci_function.device_guard import Guarded, check_engine
from nodma.pci_function.interrupts import Interrupts, close_all
from nodma.pci_function.queue_thread import QueueThread, pause_all
from nodma.pci_function.queues import Counters, RetiredThreads, VirtQueue
from nodma.ring import BUSY, FAULT, TURNS, DeviceRing, QueueEngine, RingLayout
from nodma.spec.profiles import AddressRange, Policy, Profile
from nodma.spec.virtio import Feature, Status
from nodma.spec.virtio_pci import NO_VECTOR, Isr
from nodma.window import Window

log = logging.getLogger(__name__)

_NO_THREADS: Final = nullcontext()
_FINISH_LOOK_SECONDS: Final = 0.002


class VirtioCore:
    """The device model's other side: what the driver negotiated and set up."""

    def __init__(
        self,
        device: Device,
        profile: Profile,
        policy: Policy,
        interrupts: Interrupts,
        window: Window,
        *,
        threads: bool = False,
        poll_ns: int = 0,
    ) -> None:
        self.device = device
        self.profile = profile
        self.policy = policy
        self.interrupts = interrupts
        self.window = window
        transport = (
            Feature.VERSION_1,
            Feature.ACCESS_PLATFORM,
            Feature.EVENT_IDX,
            Feature.INDIRECT_DESC,
            profile.feature,
        )
        self.offered = device.features | sum(feature.mask for feature in transport)
        self.accepted = 0
        self.status = Status(0)
        self.isr = Isr(0)
        self.config_vector = NO_VECTOR
        self.config_generation = 0
        self.queues = [VirtQueue(queue) for queue in device.queues]
        self.counters = Counters()
        self.reason = ""
        """Why the device last asked for a reset, or refused the features."""
        self.before_enable: Callable[[VirtQueue], str] = lambda _: ""
        """Called before a queue is enabled; returns why it cannot be, or ""."""
        self._address_range: AddressRange | None = None
        self._active: list[VirtQueue] = []
        self._threaded: list[VirtQueue] = []
        self._retired = RetiredThreads()
        self._reset_device = False
        self._pause_depth = 0
        self._unfit = ""
        self._poll_ns = poll_ns
        self.main_thread_must_interrupt = False
        """Whether a queue's thread may want an interrupt that it cannot give itself, as INTx: that must not wait."""
        self.wakeup_fd = -1
        """An eventfd that is signalled when a queue's thread wants :meth:`service`; -1 without threads."""
        self.doorbells: list[int] = []
        """An eventfd a queue, which notifies its thread; whoever may notify may have it. None without threads."""
        if threads:
            self.wakeup_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self.doorbells = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in self.queues]
        device.on_config_change(self.config_changed)

    @property
    def address_range(self) -> AddressRange | None:
        """Which addresses are the window's now; None if none is."""
        return self._address_range

    @property
    def running(self) -> bool:
        """Whether requests may be handled (2.1, 3.1)."""
        return (
            bool(self.status & Status.DRIVER_OK)
            and not self.status & (Status.DEVICE_NEEDS_RESET | Status.FAILED)
            and self._address_range is not None
        )

    def reset(self) -> None:
        """Reset the device as writing 0 to the status does (2.4). The window keeps its contents."""
        had = self.status
        again, self._unfit = bool(self._unfit), ""
        self.status = Status(0)
        self.accepted = 0
        self.config_vector = NO_VECTOR
        self.isr = Isr(0)
        self.interrupts.set_line(False)
        self._active.clear()
        self._pause_threads()
        self._retired.retire(self.queues, self.counters)
        for queue in self.queues:
            if queue.engine is not None:
                self.counters.requests += queue.engine.requests
                self.counters.interrupts += queue.engine.interrupts
                with self.guarded(f"closing queue {queue.queue.name}"):
                    queue.close()
            queue.reset()
        self._threaded.clear()
        self.main_thread_must_interrupt = False
        if had or again:
            self.counters.resets += 1
            self._reset_device = True
        if self.status:
            self._unfit = self.reason
        self._finish_reset()

    def _finish_reset(self) -> None:
        """End the reset, if nothing that was begun before it is under way any more; the driver waits for status 0."""
        if not self._retired.end():
            self.status = Status.DEVICE_NEEDS_RESET
            return
        self.status = Status(0)
        if self._reset_device:
            self._reset_device = False
            with self.guarded("reset()"):
                self.device.reset()
        if self.status:  # The driver waits to read 0 (4.1.4.3.2): it is told when it begins anew, if not reset by then.
            self._unfit, self.status = self.reason, Status(0)

    @property
    def unfinished(self) -> str:
        """What a reset has not ended, because a disk does not answer; "" if nothing."""
        return self._retired.unfinished

    def read_status(self) -> Status:
        """Return the device status. It is not 0 before a reset is over."""
        if self._retired.unfinished:
            self._finish_reset()
        return self.status

    def write_status(self, value: int) -> None:
        """Take what the driver writes to the status: 0 resets, and bits once set stay (2.1.1)."""
        if self._retired.unfinished:
            self._finish_reset()
        if self._retired.unfinished:
            return  # the driver has not waited
        if value == 0:
            self.reset()
            return
        if self._unfit and not self.status:
            self.fail(self._unfit)
        new = Status(value) & ~self.status & ~Status.DEVICE_NEEDS_RESET
        if new & Status.FEATURES_OK and not self._features_ok():
            new &= ~Status.FEATURES_OK
        self.status |= new
        if new & Status.FAILED:
            log.info("the driver gave up on the device (FAILED)")
        if new & Status.DRIVER_OK and self.status & Status.DEVICE_NEEDS_RESET:
            self._interrupt(self.config_vector, Isr.CONFIG)
        elif new & Status.DRIVER_OK:
            if not self.status & Status.FEATURES_OK:
                self.fail("DRIVER_OK without FEATURES_OK")
                return
            log.info("the driver is ready, features %#x", self.accepted)
            with self.guarded("start()"):
                self.device.start(self.accepted)
                self._wake_all()

    def guarded(self, what: str) -> Guarded:
        """Guard a block that runs code of the device model's: if it raises, the device asks for a reset."""
        return Guarded(self.fail, f"{type(self.device).__name__}: {what}")

    def _features_ok(self) -> bool:
        """Check what the driver accepted (2.2, SW-V1, DMB-V6)."""
        missing = self.accepted & ~self.offered
        if self._unfit:
            self.reason = self._unfit
        elif missing:
            self.reason = f"the driver accepts features that were not offered: {missing:#x}"
        elif not self.accepted & Feature.VERSION_1.mask:
            self.reason = "the driver does not accept VERSION_1"
        elif self.policy is Policy.REQUIRED and not self.accepted & self.profile.feature.mask:
            self.reason = (
                f"the driver does not accept VIRTIO_F_{self.profile.feature.name} (bit {self.profile.feature}),"
                f" which this device's policy requires ({self.profile.clauses.refuse})"
            )
        elif self.accepted & self.profile.feature.mask and self.profile.needs & ~self.accepted:
            self.reason = (
                f"the driver accepts VIRTIO_F_{self.profile.feature.name} without what it needs:"
                f" features {self.profile.needs & ~self.accepted:#x} (DMB-D1)"
            )
        else:
            return True
        self.counters.refused += 1
        log.warning("FEATURES_OK refused: %s", self.reason)
        return False

    def accept(self, word: int, value: int) -> None:
        """Take 32 feature bits of the driver, until FEATURES_OK settles them."""
        if word < 2 and not self.status & Status.FEATURES_OK:
            shift = 32 * word
            self.accepted = self.accepted & ~(0xFFFFFFFF << shift) | value << shift

    def enable(self, queue: VirtQueue) -> None:
        """Begin to use a queue, at the addresses that the driver set."""
        if queue.enabled or self.status & Status.DEVICE_NEEDS_RESET:
            return
        if not self.status & Status.FEATURES_OK:
            self.fail(f"queue {queue.queue.name} enabled before FEATURES_OK")
            return
        if why_not := self.before_enable(queue):
            self.fail(why_not)
            return
        address_range = self._address_range
        if address_range is None:
            self.fail(f"queue {queue.queue.name} enabled while the window's BAR decodes no address")
            return
        layout = RingLayout(
            queue.size, *(address - address_range.base for address in (queue.desc, queue.driver, queue.device))
        )
        try:
            ring = DeviceRing(
                self.window,
                layout,
                base=address_range.base,
                first=address_range.first,
                limit=address_range.limit,
                indirect=bool(self.accepted & Feature.INDIRECT_DESC.mask),
                event_idx=bool(self.accepted & Feature.EVENT_IDX.mask),
            )
        except BadRing as error:
            self._on_ring_fault(queue, error)
            return
        with self.guarded(f"serving queue {queue.queue.name}"):
            engine = self.device.make_engine(queue.queue, ring)
            check_engine(engine)
            queue.engine = engine
            if self.doorbells and isinstance(engine, QueueEngine):
                queue.thread = self._make_thread(queue, engine)
                self._threaded.append(queue)
            queue.enabled = True
            self._wake(queue)
        if not queue.enabled:
            with self.guarded(f"closing queue {queue.queue.name}"):
                queue.close()
            return
        self._resume()

    def _make_thread(self, queue: VirtQueue, engine: QueueEngine) -> QueueThread:
        doorbell = self.doorbells[self.queues.index(queue)]
        alone = len(self._threaded) < len(os.sched_getaffinity(0))  # no more queues poll than there are cores
        return QueueThread(engine, doorbell=doorbell, wakeup_fd=self.wakeup_fd, poll_ns=self._poll_ns if alone else 0)

    def rebase(self, address_range: AddressRange | None) -> None:
        """Follow the window to where it is now; None while it is nowhere, and requests wait."""
        if address_range == self._address_range:
            return
        self._address_range = address_range
        if address_range is not None:
            with self.guarded("following the window"):
                for queue in self.queues:
                    if queue.engine is not None:
                        queue.engine.rebase(address_range.base)
                self._wake_all()

    def notify(self, index: int) -> None:
        """Take an available buffer notification; one for no queue in use is spurious, and harmless."""
        self.counters.notifications += 1
        if index < len(self.queues):
            with self.guarded("waking a queue"):
                self._wake(self.queues[index])

    def _wake(self, queue: VirtQueue) -> None:
        if queue.thread is not None:
            queue.thread.notify()
        elif queue.engine is not None and queue not in self._active:
            queue.engine.disarm()
            queue.polled = queue.engine.requests, time.monotonic_ns()
            self._active.append(queue)

    def _wake_all(self) -> None:
        for queue in self.queues:
            self._wake(queue)

    # Threads

    def paused_queues(self) -> AbstractContextManager[None]:
        """Keep the queues' threads still while something is changed that they look at."""
        return self._paused() if self._threaded and not self._pause_depth else _NO_THREADS

    @contextmanager
    def _paused(self) -> Iterator[None]:
        self._pause_depth += 1
        try:
            self._pause_threads()
            yield
        finally:
            self._pause_depth -= 1
            self._resume()

    def _pause_threads(self) -> None:
        """Pause all threads at once. Whose client made a full eventfd blocking gets no more interrupts."""
        threads = [queue.thread for queue in self._threaded if queue.thread is not None]
        pause_all(threads)
        if any(thread.engine.gave_up for thread in threads):
            for thread in threads:
                thread.engine.gave_up = False
            self._pause_depth += 1  # they are paused, and stay so
            self.interrupts.give_up()
            self._pause_depth -= 1

    def tick(self) -> None:
        """See that no eventfd keeps a queue's thread. To be called about once a second."""
        for queue in self._threaded:
            if queue.thread is not None:
                queue.thread.look_after()

    def _resume(self) -> None:
        """Let the threads continue, unless something else keeps them paused."""
        if self._pause_depth or not self.running:
            return
        self.main_thread_must_interrupt = False
        for queue in self._threaded:
            if queue.thread is not None:
                queue.thread.engine.signal_fd = self.interrupts.eventfd_if_unmasked(queue.vector)
                self.main_thread_must_interrupt |= queue.thread.engine.signal_fd < 0
                queue.thread.resume()

    def service(self) -> bool:
        """Serve queues that have work for a turn, do what threads ask for; return whether any queue has more."""
        if self._retired.unfinished:
            self._finish_reset()
        if self._threaded:
            self._service_threads()
        if not self._active or not self.running:
            return False
        for queue in tuple(self._active):
            if not self._serve(queue) and queue in self._active:
                self._active.remove(queue)
        return bool(self._active) and self.running

    def finish(self, seconds: float) -> None:
        """Handle the requests that have arrived, for at most ``seconds``."""
        end = time.monotonic() + seconds
        self._wake_all()  # a driver need not have notified us yet
        while time.monotonic() < end:
            if self.service():
                continue
            if not self._threads_are_busy():
                break
            time.sleep(_FINISH_LOOK_SECONDS)

    def _threads_are_busy(self) -> bool:
        """Return whether a queue's thread has requests left."""
        if not self.running:
            return False
        with self.paused_queues():
            threads = [queue.thread for queue in self._threaded if queue.thread is not None]
            return any(thread.busy for thread in threads)

    def _service_threads(self) -> None:
        """Do what the queues' threads cannot do themselves. Most often there is nothing, and that is soon seen."""
        for queue in self._threaded:
            assert queue.thread
            if queue.thread.engine.gave_up:
                with self.paused_queues():
                    pass  # to pause it is to find out, and to act
            self._deliver(queue, queue.thread.engine)
            if queue.thread.ended and not self.status & Status.DEVICE_NEEDS_RESET:
                self._on_ring_fault(queue, queue.thread.explain())

    def _serve(self, queue: VirtQueue) -> bool:
        """Handle a few batches of a queue; return whether there may be more."""
        engine = queue.engine
        assert engine is not None
        more = False
        with self.guarded(f"handling a request of queue {queue.queue.name}"):
            state = engine.serve(TURNS)
            self._deliver(queue, engine)
            if state == FAULT:
                self._on_ring_fault(queue, engine.explain())
            else:
                more = state == BUSY or self._polls(queue, engine) or engine.arm()
        return more

    def _polls(self, queue: VirtQueue, engine: Engine) -> bool:
        """Whether to look at a queue that has no request now, because the last one is not long ago."""
        if not self._poll_ns:
            return False
        now = time.monotonic_ns()
        if engine.requests != queue.polled[0]:
            queue.polled = engine.requests, now
        return now - queue.polled[1] < self._poll_ns

    def _deliver(self, queue: VirtQueue, engine: Engine) -> None:
        """Deliver the interrupt that an engine wants."""
        if engine.wanted:
            engine.wanted = False
            self._interrupt(queue.vector, Isr.QUEUE)

    def _on_ring_fault(self, queue: VirtQueue, error: BadRing) -> None:
        if isinstance(error, OutsideAddress):
            self.counters.outside += 1
        self.fail(f"queue {queue.queue.name}: {error}")

    def fail(self, reason: str) -> None:
        """Set DEVICE_NEEDS_RESET, and tell a driver that is ready (2.1.2)."""
        if self.status & Status.DEVICE_NEEDS_RESET:  # what came first is the reason
            log.info("and: %s", reason)
            return
        self.reason = reason
        log.warning("DEVICE_NEEDS_RESET: %s", reason)
        self.counters.needs_reset += 1
        self._active.clear()
        self._pause_threads()
        self.status |= Status.DEVICE_NEEDS_RESET
        if self.status & Status.DRIVER_OK:
            self._interrupt(self.config_vector, Isr.CONFIG)

    @property
    def requests(self) -> int:
        """Requests taken since the process began."""
        return self.counters.requests + sum(queue.engine.requests for queue in self.queues if queue.engine)

    @property
    def interrupted(self) -> int:
        """Interrupts delivered since the process began."""
        signalled = sum(queue.engine.interrupts for queue in self.queues if queue.engine)
        return self.interrupts.delivered + self.counters.interrupts + signalled

    def renew_doorbells(self) -> None:
        """Make each queue a new doorbell: a client that is gone may still hold the old one. The queues are reset."""
        fresh: list[int] = []
        try:
            fresh.extend(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in self.doorbells)
        except OSError:  # the old ones stay, until this is called again
            close_all(fresh)
            raise
        old, self.doorbells = self.doorbells, fresh
        if old:
            self.interrupts.close_fds(old)

    def close(self) -> None:
        """Close what is open, the window excepted. The queues are reset."""
        for fd in (*self.doorbells, self.wakeup_fd):
            if fd >= 0:
                os.close(fd)
        self.doorbells, self.wakeup_fd = [], -1

    def config_changed(self) -> None:
        """Tell the driver that the device configuration has changed (2.5)."""
        self.config_generation = (self.config_generation + 1) & 0xFF
        if self.status & Status.DRIVER_OK:
            self._interrupt(self.config_vector, Isr.CONFIG)

    def _interrupt(self, vector: int, cause: Isr) -> None:
        """Interrupt the driver by MSI-X, or by INTx with its cause in the ISR status (4.1.4.5)."""
        if self.interrupts.msix_on:
            if cause is Isr.CONFIG:
                self.isr |= cause
            self.interrupts.raise_vector(vector)
        else:
            self.isr |= cause
            self.interrupts.set_line(True)

    def take_isr(self) -> int:
        """Read the ISR status, which clears it and de-asserts INTx."""
        isr = self.isr
        self.isr = Isr(0)
        self.interrupts.set_line(False)
        return isr
