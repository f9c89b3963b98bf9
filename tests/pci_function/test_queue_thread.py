"""Queues that are served by threads of their own: the driver's notifications, interrupts, faults, resets."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nodma.builds import load_interpreted
from nodma.loop import Loop
from nodma.pci_function import PciFunction
from nodma.pci_function.queue_thread import QueueThread
from nodma.ring import RingLayout
from nodma.spec.pci import Command, MsixControl
from nodma.spec.vfio_user import Region
from nodma.spec.virtio import Status
from nodma.spec.virtio_blk import BlkRequest, BlkStatus, BlkType
from nodma.spec.virtio_pci import CommonCfg

DriverRing = load_interpreted("nodma.ring.driver_end").DriverRing
BASE = 0x10_0000_0000
LAYOUT = RingLayout.packed_at(0, 16)
HEADER, DATA, STATUS, BAD = 0x8000, 0x9000, 0x8010, 0x100000
SECONDS = 10.0


class Disk:
    """A function with a disk whose queue has a thread; this thread is the VMM."""

    def __init__(self, function: PciFunction, registers: Any) -> None:
        self.function = function
        self.core = function.core
        self.registers = registers(function)
        self.vector = os.eventfd(0, os.EFD_NONBLOCK)
        function.interrupts.assign_vectors(1, [os.dup(self.vector)])

    def start(self) -> None:
        self.registers.place(BASE, Command.MEMORY)
        control = self.function._msix_at + 2
        self.function.write(Region.CONFIG, control, int(MsixControl.ENABLE).to_bytes(2, "little"))
        assert self.registers.negotiate() & Status.FEATURES_OK
        self.ring = DriverRing(self.function.window, LAYOUT, base=BASE, event_idx=True)
        self.registers.enable(LAYOUT)
        self.registers.set(CommonCfg.queue_msix_vector, 1)
        self.registers.ready()

    def offer(self, kind: int = BlkType.IN, data: int = DATA, *, after: int = 1) -> None:
        BlkRequest.codec.pack_into(self.function.window.bytes, HEADER, kind, 0, 4)
        self.function.window.bytes[STATUS] = 0xFF
        self.ring.arm(after)
        self.ring.add([(HEADER, 16)], [(data, 512), (STATUS, 1)], "request")
        if self.ring.publish():
            self.registers.notify()

    def interrupted(self) -> bool:
        """Wait for the queue's interrupt."""
        ready, _, _ = select.select([self.vector], [], [], SECONDS)
        return bool(ready) and os.eventfd_read(self.vector) > 0

    def attend(self) -> None:
        """Wait until the thread wants something, and do it."""
        assert select.select([self.function.wakeup_fd], [], [], SECONDS)[0]
        self.function.service()

    @property
    def answer(self) -> bytes:
        return bytes(self.function.window.view(DATA, 4))


@pytest.fixture(params=[0, 1_000_000], ids=["notified", "polled"])
def disk(make_function: Callable[..., PciFunction], registers: Any, request: pytest.FixtureRequest) -> Iterator[Disk]:
    made = Disk(make_function(threads=True, poll_ns=request.param), registers)
    yield made
    os.close(made.vector)


SECTOR_4 = (4).to_bytes(4, "little")


def test_a_request_is_done_and_interrupts_without_the_vmms_thread(disk: Disk) -> None:
    disk.start()
    for _ in range(100):
        disk.offer()
        assert disk.interrupted()
        assert disk.answer == SECTOR_4
        assert disk.ring.reap(4) == [("request", 513)]
    assert disk.core.requests == 100
    assert disk.core.interrupted == 100
    assert disk.core.counters.notifications <= 100


def test_the_doorbell_notifies_as_the_register_does(disk: Disk) -> None:
    disk.start()
    disk.offer()
    os.eventfd_write(disk.core.doorbells[0], 1)
    assert disk.interrupted()


def test_a_doorbell_that_its_holder_reads_and_fills_does_no_harm(disk: Disk) -> None:
    """Whoever may ring it holds the same eventfd: it can be drained, filled, and made to block."""
    disk.start()
    bell = disk.core.doorbells[0]
    os.eventfd_write(bell, 2**64 - 2)
    os.set_blocking(bell, True)
    for _ in range(3):
        disk.offer()
        disk.registers.notify()
        assert disk.interrupted()
        disk.ring.reap(4)


def test_a_masked_vector_stays_pending_until_it_is_unmasked(disk: Disk) -> None:
    disk.start()
    disk.function.interrupts.mask_vectors(1, 1, True)
    disk.offer()
    disk.attend()
    assert not select.select([disk.vector], [], [], 0)[0]
    disk.function.interrupts.mask_vectors(1, 1, False)
    assert disk.interrupted()


def test_the_function_mask_holds_back_what_a_queues_thread_interrupts_for(disk: Disk) -> None:
    """The thread signals the eventfd itself: it must not while all vectors are masked (PCI 3.0, 6.8.2.3)."""
    control = disk.function._msix_at + 2
    disk.start()
    disk.function.write(
        Region.CONFIG, control, int(MsixControl.ENABLE | MsixControl.FUNCTION_MASK).to_bytes(2, "little")
    )
    disk.offer()
    disk.attend()
    assert not select.select([disk.vector], [], [], 0)[0]
    assert disk.function.read(0, 0x6000, 1) == b"\2", "it is pending"
    disk.function.write(Region.CONFIG, control, int(MsixControl.ENABLE).to_bytes(2, "little"))
    assert disk.interrupted()
    assert disk.function.read(0, 0x6000, 1) == b"\0"
    disk.ring.reap(4)
    disk.offer()
    assert disk.interrupted(), "and the thread does it itself again"


def test_interrupts_that_the_vmms_thread_has_to_give_are_urgent(disk: Disk) -> None:
    assert not disk.core.main_thread_must_interrupt
    disk.start()
    assert not disk.core.main_thread_must_interrupt
    disk.function.interrupts.mask_vectors(1, 1, True)
    assert disk.function.main_thread_must_interrupt
    disk.function.interrupts.mask_vectors(1, 1, False)
    assert not disk.function.main_thread_must_interrupt
    disk.function.write(Region.CONFIG, disk.function._msix_at + 2, bytes(2))  # INTx
    assert disk.function.main_thread_must_interrupt
    disk.registers.set(CommonCfg.device_status, 0)
    assert not disk.function.main_thread_must_interrupt


def test_of_nested_pauses_the_outermost_ends_it(disk: Disk) -> None:
    disk.start()
    thread = disk.core.queues[0].thread
    assert thread
    assert is_running(thread)
    with disk.core.paused_queues():
        with disk.core.paused_queues():
            assert not is_running(thread)
        assert not is_running(thread)
        disk.registers.notify()
        disk.function.write(0, 0x2000, b"")  # each write of a register pauses, too
        assert not is_running(thread)
    assert is_running(thread)
    disk.offer()
    assert disk.interrupted()


def test_an_exception_inside_a_pause_ends_the_pause(disk: Disk) -> None:
    disk.start()
    thread = disk.core.queues[0].thread
    assert thread
    with pytest.raises(ZeroDivisionError), disk.core.paused_queues():
        raise ZeroDivisionError
    assert is_running(thread)


def is_running(thread: QueueThread) -> bool:
    """Whether the thread may serve."""
    return thread._state.name == "RUNNING"


def test_a_queue_that_is_reset_signals_no_vector_for_what_ends_then(disk: Disk) -> None:
    """By then the eventfd may be another's, or closed, and its number another file's."""
    begun, go_on = threading.Event(), threading.Event()

    def slow(*words: Any) -> int:
        begun.set()
        assert go_on.wait(SECONDS)
        return BlkStatus.OK

    disk.function.device._handle_rare = slow  # type: ignore[attr-defined]
    disk.start()
    disk.offer(BlkType.GET_ID)
    assert begun.wait(SECONDS)
    threading.Timer(0.05, go_on.set).start()
    disk.registers.set(CommonCfg.device_status, 0)
    while disk.registers.status:
        disk.function.service()
    assert not select.select([disk.vector], [], [], 0)[0]
    assert disk.core.counters.requests == 1


def test_a_queue_may_be_enabled_late(disk: Disk) -> None:
    disk.registers.place(BASE, Command.MEMORY)
    disk.registers.negotiate()
    disk.registers.ready()
    disk.ring = DriverRing(disk.function.window, LAYOUT, base=BASE, event_idx=True)
    disk.registers.enable(LAYOUT)
    disk.offer()
    disk.attend()  # without a vector it is the main thread that would interrupt
    assert disk.answer == SECTOR_4


def test_a_fault_is_told_by_the_vmms_thread(disk: Disk) -> None:
    disk.start()
    disk.offer(data=BAD)
    disk.attend()
    assert disk.registers.status & Status.DEVICE_NEEDS_RESET
    assert "is outside the window" in disk.core.reason
    assert disk.core.counters.outside == 1
    disk.registers.set(CommonCfg.device_status, 0)
    disk.start()  # and all is well again
    disk.offer()
    assert disk.interrupted()


def test_a_queues_thread_that_fails_fails_the_device(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(engine: object) -> int:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr("nodma.pci_function.queue_thread.queue_main", fails)
        disk.start()
        disk.attend()
    assert disk.registers.status & Status.DEVICE_NEEDS_RESET
    assert "the queue's thread failed; see the log" in disk.core.reason
    disk.registers.set(CommonCfg.device_status, 0)
    disk.start()
    disk.offer()
    assert disk.interrupted()


def test_reset_waits_for_what_is_outstanding(disk: Disk) -> None:
    """After it the device writes nothing any more, and nothing was lost before."""
    disk.start()
    for _ in range(20):
        disk.offer(BlkType.FLUSH)
        disk.registers.set(CommonCfg.device_status, 0)
        assert disk.function.window.bytes[STATUS] in (0xFF, BlkStatus.OK)
        disk.start()
    assert disk.core.counters.resets == 20


def test_a_window_that_moves_is_followed_under_way(disk: Disk) -> None:
    disk.start()
    disk.registers.place(command=0)
    disk.ring._base = BASE * 2
    disk.offer()
    assert not disk.core.running
    disk.registers.place(BASE * 2)
    assert disk.interrupted()
    assert disk.answer == SECTOR_4


def test_threads_and_descriptors_end_with_the_queue(
    make_function: Callable[..., PciFunction], registers: Any, count_descriptors: Callable[[], int]
) -> None:
    threads, descriptors = threading.active_count(), count_descriptors()
    disk = Disk(make_function(threads=True), registers)
    for _ in range(3):
        disk.start()
        assert threading.active_count() > threads
        disk.registers.set(CommonCfg.device_status, 0)
        assert threading.active_count() == threads
    del disk.ring  # its views keep the window mapped
    disk.function.close()
    os.close(disk.vector)
    assert count_descriptors() == descriptors


@pytest.mark.parametrize("lacking", ["pipe", "thread"])
def test_a_queue_that_cannot_be_served_leaves_nothing_behind(
    make_function: Callable[..., PciFunction],
    registers: Any,
    count_descriptors: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
    lacking: str,
) -> None:
    disk = Disk(make_function(threads=True), registers)
    threads, descriptors = threading.active_count(), count_descriptors()
    calls = []

    def fails_at_the_second(*words: Any) -> Any:
        calls.append(words)
        if len(calls) == 2:
            raise OSError(24, "Too many open files") if lacking == "pipe" else RuntimeError("can't start new thread")
        return real(*words)

    real: Any = os.pipe2 if lacking == "pipe" else threading.Thread.start
    with monkeypatch.context() as patch:
        if lacking == "pipe":
            patch.setattr(os, "pipe2", fails_at_the_second)
        else:
            patch.setattr(threading.Thread, "start", lambda thread: fails_at_the_second(thread))
        disk.start()
    assert disk.registers.status & Status.DEVICE_NEEDS_RESET
    assert "serving queue requests0 failed" in disk.core.reason
    assert threading.active_count() == threads
    del disk.ring  # its views keep nothing else open
    assert count_descriptors() == descriptors
    disk.registers.set(CommonCfg.device_status, 0)
    disk.start()
    disk.offer()
    assert disk.interrupted()
    os.close(disk.vector)


def test_a_client_that_left_cannot_ring_the_next_ones_bell(disk: Disk) -> None:
    kept = os.dup(disk.core.doorbells[0])
    disk.function.detach()
    os.eventfd_write(kept, 1)
    with pytest.raises(BlockingIOError):
        os.eventfd_read(disk.core.doorbells[0])
    os.close(kept)


def test_a_third_partys_device_is_served_by_the_vmms_thread(image: Path) -> None:
    """Its handlers are never called by two threads at once."""
    from nodma.device import Device, Queue, Request

    class Echo(Device):
        device_type = 42
        queues = (Queue("echo", size=16, batch=True),)

        def echo(self, requests: list[Request]) -> None:
            self.seen = threading.current_thread(), len(requests)
            for request in requests:
                request.write(request.read())

    function = PciFunction(Echo(), pool=1 << 20, threads=True)
    try:
        assert function.core.queues[0].thread is None
    finally:
        function.close()


@pytest.fixture
def ticking() -> Iterator[Loop]:
    """A loop that has run: from then on, threads that a client keeps waiting can be interrupted."""
    loop = Loop()
    loop.call_soon(loop.stop)
    loop.run()
    yield loop
    loop.close()


class Blocked:
    """A disk whose client filled the eventfd of all queues, made it blocking, and has every queue interrupt."""

    def __init__(self, function: PciFunction, registers: Any, queues: int) -> None:
        self.function = function
        self.core = function.core
        self.registers = registers(function)
        self.eventfd = os.eventfd(0)
        function.interrupts.assign_vectors(0, [os.dup(self.eventfd) for _ in range(queues + 1)])
        self.registers.place(BASE, Command.MEMORY)
        function.write(Region.CONFIG, function._msix_at + 2, int(MsixControl.ENABLE).to_bytes(2, "little"))
        self.registers.negotiate()
        self.rings = []
        for index in range(queues):
            layout = RingLayout.packed_at(index << 12, 16)
            self.rings.append(DriverRing(function.window, layout, base=BASE, event_idx=True))
            self.registers.enable(layout, index=index)
            self.registers.set(CommonCfg.queue_msix_vector, index + 1)
        self.registers.ready()
        os.eventfd_write(self.eventfd, 2**64 - 2)

    def offer(self) -> None:
        """Offer a request to each queue; its thread is kept by the interrupt."""
        os.set_blocking(self.eventfd, True)
        for index, ring in enumerate(self.rings):
            BlkRequest.codec.pack_into(self.function.window.bytes, HEADER, BlkType.IN, 0, 4)
            ring.reap(4)
            ring.arm(1)
            ring.add([(HEADER, 16)], [(DATA, 512), (STATUS, 1)], "request")
            ring.publish()
            self.registers.notify(index)

    def wait_until_blocked(self) -> None:
        engines = [queue.thread.engine for queue in self.core.queues if queue.thread]
        deadline = time.monotonic() + SECONDS
        while not all(engine.signalling for engine in engines):
            assert time.monotonic() < deadline
            time.sleep(0.001)


@pytest.fixture
def blocked(make_function: Callable[..., PciFunction], registers: Any, ticking: Loop) -> Iterator[Blocked]:
    made = Blocked(make_function(threads=True, queues=3), registers, queues=3)
    made.offer()
    made.wait_until_blocked()
    yield made
    os.close(made.eventfd)


def test_threads_that_a_full_eventfd_keeps_are_paused_all_the_same(blocked: Blocked) -> None:
    """Without the mend this waits a second a queue; without interrupts it waits forever."""
    waits: list[int] = []
    for queue in blocked.core.queues:
        assert queue.thread
        interrupt = queue.thread.interrupt
        queue.thread.interrupt = lambda interrupt=interrupt: (waits.append(1), interrupt())  # type: ignore[method-assign]
    blocked.registers.set(CommonCfg.queue_select, 0)
    assert waits
    assert not any(engine.signalling for engine in (q.thread.engine for q in blocked.core.queues if q.thread))


def test_a_vector_that_was_given_up_stays_given_up_until_it_is_assigned_anew(blocked: Blocked) -> None:
    blocked.registers.set(CommonCfg.queue_select, 0)
    interrupts = blocked.function.interrupts
    assert [interrupts.eventfd_if_unmasked(vector) for vector in range(4)] == [-1] * 4
    for _ in range(3):  # it is as full, and blocks as before: nobody writes to it any more
        blocked.offer()
        blocked.function.service()
        blocked.registers.set(CommonCfg.queue_select, 0)
        interrupts.mask_vectors(0, 4, True)
        interrupts.mask_vectors(0, 4, False)
    vector = os.eventfd(0, os.EFD_NONBLOCK)
    interrupts.assign_vectors(1, [os.dup(vector)])
    blocked.offer()
    assert select.select([vector], [], [], SECONDS)[0]
    os.close(vector)


def test_a_client_that_leaves_takes_its_blocked_eventfds_along(blocked: Blocked) -> None:
    blocked.function.detach()
    assert all(queue.thread is None for queue in blocked.core.queues)
    assert blocked.core.status == 0  # nothing is left that the reset would have to wait for


def test_a_thread_that_nobody_pauses_is_let_go_after_a_while(blocked: Blocked) -> None:
    blocked.function.tick()
    blocked.function.tick()
    deadline = time.monotonic() + SECONDS
    while blocked.function.interrupts.eventfd_if_unmasked(1) >= 0:
        assert time.monotonic() < deadline
        blocked.function.tick()
        blocked.function.service()


def test_all_threads_are_asked_to_pause_before_one_is_waited_for(
    make_function: Callable[..., PciFunction], registers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = Blocked(make_function(threads=True, queues=3), registers, queues=3).core
    calls: list[str] = []
    ask, wait = QueueThread.ask_to_pause, QueueThread.wait_paused
    monkeypatch.setattr(QueueThread, "ask_to_pause", lambda thread: (calls.append("ask"), ask(thread))[1])
    monkeypatch.setattr(
        QueueThread, "wait_paused", lambda thread, seconds: (calls.append("wait"), wait(thread, seconds))[1]
    )
    with core.paused_queues():
        assert calls[:4] == ["ask", "ask", "ask", "wait"]
        calls.clear()
        with core.paused_queues():
            assert calls == []  # inside, it costs nothing
