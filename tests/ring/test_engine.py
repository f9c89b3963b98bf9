"""A queue's engine: how long it polls before it waits, and what it does with an interrupt that cannot be given."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from nodma.builds import load_interpreted
from nodma.ring import PAUSED, DriverRing, RingLayout, syscalls
from nodma.window import Window

LAYOUT = RingLayout.packed_at(0, 16)
LONG_NS = 10**12


@pytest.fixture
def window() -> Iterator[Window]:
    with Window.create(64 << 10) as window:
        yield window


@pytest.fixture
def engine(window: Window) -> Iterator[Any]:
    """The interpreted build, whose parts can be called one by one; both are one source."""
    ring = load_interpreted("nodma.ring.device_end").DeviceRing(
        window, LAYOUT, base=0, first=0, limit=window.size, indirect=True, event_idx=True
    )
    made = load_interpreted("nodma.ring.engine").QueueEngine(ring)
    yield made
    made.close()


def offer(window: Window) -> None:
    driver = DriverRing(window, LAYOUT, base=0, event_idx=True)
    driver.add([(0x8000, 1)], [], "x")
    driver.publish()


def test_an_engine_that_is_not_to_poll_does_not_look_again(engine: Any, window: Window) -> None:
    offer(window)
    assert not engine._poll_ring()


def test_polling_ends_with_a_request_a_pause_or_its_time(engine: Any, window: Window) -> None:
    engine.poll_for(20_000)
    assert not engine._poll_ring()
    engine.poll_for(LONG_NS)
    engine.pause()
    assert engine._poll_ring()
    engine.resume()
    offer(window)
    assert engine._poll_ring()


def test_polling_ends_when_what_is_outstanding_has_come(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.poll_for(LONG_NS)
    engine.outstanding = 1
    monkeypatch.setattr(engine, "collect", lambda: 1)
    assert engine._poll_ring()


def test_polling_is_as_long_as_it_pays_off(engine: Any) -> None:
    """A wait that was shorter than polling may be doubles it, a longer one halves it, down to a sixteenth."""
    bell = os.eventfd(0, os.EFD_NONBLOCK)
    engine.watch(bell)
    engine.poll_for(1600)
    for expected in (800, 400, 200, 100, 100):
        timer = threading.Timer(0.002, os.eventfd_write, (bell, 1))
        timer.start()
        engine._wait()  # longer than 1600 ns
        timer.join()
        assert engine._poll_ns == expected
    engine._max_poll_ns = LONG_NS
    for expected in (200, 400):
        os.eventfd_write(bell, 1)
        engine._wait()
        assert engine._poll_ns == expected
    os.close(bell)


def test_a_vector_whose_signal_had_to_be_interrupted_is_given_up(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was full, and made to block: each further signal would wait again."""
    wakeup = os.eventfd(0, os.EFD_NONBLOCK)
    engine.signal_fd, engine.wakeup_fd = 1000, wakeup
    signalled: list[int] = []

    def signal(fd: int) -> int:
        signalled.append(fd)
        assert engine.signalling, "whoever waits for the thread sees where it is"
        return -load_interpreted("nodma.ring.engine").syscalls.EINTR if fd == 1000 else 0

    monkeypatch.setattr("nodma.ring.syscalls.signal", signal)
    engine.ring.add_used(0, 0)
    engine.publish_and_interrupt()
    assert signalled == [1000, wakeup]
    assert (engine.signal_fd, engine.gave_up, engine.signalling) == (-1, True, False)
    engine.ring.add_used(0, 0)
    engine.publish_and_interrupt()
    os.close(wakeup)


def test_an_idle_loop_waits_and_does_not_spin(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """After it found nothing, polled in vain, and asked for a notification."""
    waits: list[bool] = []

    def wait() -> None:
        waits.append(engine.ring.pending())
        engine.pause()

    monkeypatch.setattr(engine, "_wait", wait)
    assert engine.loop() == PAUSED
    assert waits == [False]


def test_a_loop_that_finds_a_request_after_asking_for_a_notification_does_not_wait(
    engine: Any, window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    handled: list[int] = []

    def arm() -> bool:
        offer(window)
        return True

    def handle(count: int) -> None:
        handled.append(count)
        engine.pause()

    class Ring:
        """The ring, whose driver is quick."""

        def __getattr__(self, name: str) -> Any:
            return arm if name == "arm" else getattr(ring, name)

    ring = engine.ring
    engine.ring = Ring()
    monkeypatch.setattr(engine, "handle", handle)
    monkeypatch.setattr(engine, "_wait", lambda: pytest.fail("it waits for what is there"))
    assert engine.loop() == PAUSED
    assert handled == [1]
    engine.ring = ring


def test_a_doorbell_wakes_once_for_each_ring_whoever_drains_it_or_does_not(engine: Any) -> None:
    bell = os.eventfd(0, os.EFD_NONBLOCK)
    engine.watch(bell)
    for _ in range(2):
        os.eventfd_write(bell, 1)
        assert syscalls.wait(engine._epoll, 0) == 1
        assert syscalls.wait(engine._epoll, 0) == 0, "it would spin until somebody reads"
    os.close(bell)


def test_a_call_that_returns_during_a_pause_is_held_and_says_so(engine: Any) -> None:
    """Whoever pauses looks for that: the loop then counts as paused until it is let go on, or cancelled."""
    for end in (engine.resume, engine.cancel):
        engine.pause()
        results: list[bool] = []
        held = threading.Thread(target=lambda results=results: results.append(engine.end_call()))
        held.start()
        deadline = time.monotonic() + 30
        while not engine.in_call():
            assert time.monotonic() < deadline
        assert not results
        end()
        held.join(30)
        assert results == [end == engine.resume]
        assert not engine.in_call()


def test_what_an_engine_that_handles_nothing_has_outstanding(engine: Any) -> None:
    engine.start_helpers()
    assert engine.collect() == 0
    assert engine.drain(0.0)
    engine.helper_main()
    engine.stop_helpers()
