"""What signals do, also while the main thread hangs."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest

from nodma.hosting import signals as module
from nodma.hosting.signals import Signals


class Child(subprocess.Popen[str]):
    """A process that does not outlive its test, however that ends."""

    def __exit__(self, *error: Any) -> None:
        self.kill()
        super().__exit__(*error)


class Calls(queue.SimpleQueue[str]):
    """What was called, in order."""

    def signals(self, seconds: float = 60) -> Signals:
        return Signals(
            stop=lambda: self.put("stop"), reload=lambda: self.put("reload"), give_up=self.put, seconds=seconds
        )

    def next(self) -> str:
        return self.get(timeout=30)


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_handlers_are_restored_unless_it_is_ending(calls: Calls) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with calls.signals():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
    with calls.signals():
        os.kill(os.getpid(), signal.SIGTERM)
        assert calls.next() == "stop"
    os.kill(os.getpid(), signal.SIGTERM)  # late: does nothing
    assert signal.getsignal(signal.SIGTERM) != before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_each_of_three_ends_it(calls: Calls, number: signal.Signals) -> None:
    with calls.signals():
        os.kill(os.getpid(), signal.SIGUSR1)
        assert calls.next() == "reload"
        os.kill(os.getpid(), number)
        assert calls.next() == "stop"


def test_a_second_one_at_once_is_the_same_wish_and_a_later_one_is_not(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    with calls.signals():
        os.kill(os.getpid(), signal.SIGTERM)
        assert calls.next() == "stop"
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGUSR1)  # comes after it
        assert calls.next() == "reload"
        monkeypatch.setattr(module, "_SAME_SECONDS", 0.0)
        os.kill(os.getpid(), signal.SIGHUP)
        assert calls.next() == "SIGHUP arrived a second time"


def test_a_deadline_ends_it(calls: Calls) -> None:
    with calls.signals(seconds=0.05):
        os.kill(os.getpid(), signal.SIGTERM)
        assert calls.next() == "stop"
        assert calls.next() == "it was still running 0.05 s after it was asked to end"


def test_what_is_called_may_fail(calls: Calls) -> None:
    def fail() -> None:
        raise OSError("no")

    with Signals(stop=lambda: calls.put("stop"), reload=fail, give_up=calls.put):
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert calls.next() == "stop"


def test_nohup_is_respected(calls: Calls) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with calls.signals():
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
            assert calls.next() == "stop"
            assert calls.empty()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_main_thread_that_hangs_is_ended_all_the_same() -> None:
    """As in a system call that no signal interrupts: the signals are blocked, and it waits forever."""
    code = textwrap.dedent("""
        import os, signal
        from nodma.hosting.signals import Signals
        def give_up(reason):
            print(reason, flush=True)
            os._exit(1)
        with Signals(stop=lambda: print("stop", flush=True), reload=lambda: None, give_up=give_up, seconds=0.2):
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            print("begun", flush=True)
            signal.sigwait({signal.SIGURG})
    """)
    with Child([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "begun\n"
        process.terminate()
        assert process.stdout.readline() == "stop\n"
        assert process.stdout.readline() == "it was still running 0.2 s after it was asked to end\n"
        assert process.wait(30) == 1


def test_out_of_memory_the_next_signal_is_handled_all_the_same(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = Signals._handle
    failing = iter((True, False, False))

    def fail_once(self: Signals, number: int) -> None:
        if next(failing):
            raise MemoryError
        handle(self, number)

    monkeypatch.setattr(Signals, "_handle", fail_once)
    with calls.signals():
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert calls.next() == "reload"


def test_it_ends_though_nothing_can_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []

    def fail(_: str) -> None:
        raise MemoryError

    monkeypatch.setattr(os, "_exit", ended.append)
    Signals(stop=lambda: None, reload=lambda: None, give_up=fail)._end("whatever")
    assert ended == [1]
