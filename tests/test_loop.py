"""The loop: what it calls and when, what a failing callback costs, and how long a system call can keep it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from nodma.loop import TICK_SECONDS, Loop


@pytest.fixture
def loop(count_descriptors: Callable[[], int]) -> Iterator[Loop]:
    before = count_descriptors()
    loop = Loop()
    yield loop
    loop.close()
    assert count_descriptors() == before


@pytest.fixture
def bell() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


def test_a_descriptor_is_watched_until_it_is_paused_or_cancelled(loop: Loop, bell: int) -> None:
    seen: list[int] = []
    handle = loop.add_reader(bell, lambda: seen.append(os.eventfd_read(bell)))
    for change, expected in ((None, 1), (handle.pause, 0), (handle.resume, 1), (handle.cancel, 0), (handle.cancel, 0)):
        if change:
            change()
        if not seen:
            os.eventfd_write(bell, 1)
        loop.step(0)
        assert len(seen) == expected
        seen.clear()
        if expected:
            continue
        assert not loop.step(0)


def test_timers_come_in_their_order_and_can_be_cancelled(loop: Loop) -> None:
    seen: list[str] = []
    loop.call_later(0.02, lambda: seen.append("late"))
    loop.call_later(0.0, lambda: seen.append("early"))
    loop.call_later(0.01, lambda: seen.append("never")).cancel()
    loop.call_later(0.03, loop.stop)
    loop.run()
    assert seen == ["early", "late"]


def test_other_threads_and_callbacks_can_ask_for_calls(loop: Loop) -> None:
    seen: list[str] = []

    def first() -> None:
        seen.append("first")
        loop.call_soon(lambda: seen.append("second"))
        loop.call_soon(loop.stop)

    thread = threading.Thread(target=loop.call_soon_threadsafe, args=(first,))
    thread.start()
    loop.run()
    thread.join()
    assert seen == ["first", "second"]


def test_a_callback_that_raises_is_cancelled_and_the_loop_goes_on(
    loop: Loop, bell: int, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise MemoryError

    os.eventfd_write(bell, 1)  # level-triggered: it would be called again and again
    handle = loop.add_reader(bell, fail)
    assert loop.step(0)
    assert not handle.watched
    assert not loop.step(0)
    assert "MemoryError" in caplog.text
    loop.call_soon(fail)
    loop.call_later(0.0, fail)
    loop.call_soon(loop.stop)
    loop.run()


def test_no_system_call_that_a_signal_ends_keeps_the_main_thread(loop: Loop, bell: int) -> None:
    """A client can fill an eventfd and make it block, whatever was looked at before the write."""
    os.eventfd_write(bell, 2**64 - 2)
    os.set_blocking(bell, True)
    outcome: list[BaseException] = []

    def write() -> None:
        try:
            os.eventfd_write(bell, 1)  # forever, without the tick
        except InterruptedError as error:
            outcome.append(error)
        loop.stop()

    loop.call_soon(write)
    loop.run()
    assert len(outcome) == 1


def test_an_idle_loop_has_no_tick(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks: list[float] = []
    on_tick = loop._on_tick

    def count(*words: object) -> None:
        ticks.append(time.monotonic())
        on_tick(*words)

    monkeypatch.setattr(loop, "_on_tick", count)
    loop.call_later(20 * TICK_SECONDS, loop.stop)
    loop.run()
    assert len(ticks) <= 2


def test_closing_it_gives_the_signal_back() -> None:
    before = signal.getsignal(signal.SIGALRM)
    loop = Loop()
    loop.call_soon(loop.stop)
    loop.run()
    loop.close()
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
