"""A device model with bugs: what its code raises fails that device, with the reason, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nodma import Device, Layout, Queue, Request, le32
from nodma.errors import BadRing, UsageError
from nodma.pci_function import PciFunction
from nodma.ring import BUSY, IDLE, DeviceRing, DriverRing, QueueEngine, RingLayout
from nodma.spec.virtio import Status
from nodma.spec.virtio_pci import CommonCfg

POOL = 64 << 10
BASE = 0x10_0000_0000
LAYOUT = RingLayout.packed_at(0, 16)
DATA = 0x8000
DRIVEN = ("make_engine", "start", "config_written", "config", "rolls", "reset")
"""The callbacks that something a driver does calls."""


class Buggy(Device):
    """Rolls dice; raises ``error`` in the method that ``at`` names, while it names one."""

    device_type = 0x2A
    queues = (Queue("rolls", size=16),)

    class Config(Layout):
        sides = le32(6, rw=True)

    def __init__(self, at: str = "", error: BaseException | None = None) -> None:
        super().__init__()
        self.at = at
        self.error = error or KeyError("a bug")
        self.calls: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name == "config" and object.__getattribute__(self, "__dict__").get("at") == "config":
            raise self.error
        return super().__getattribute__(name)

    def bug(self, name: str) -> None:
        self.calls.append(name)
        if name == self.at:
            raise self.error

    def make_engine(self, queue: Queue, ring: DeviceRing) -> Any:
        self.bug("make_engine")
        return super().make_engine(queue, ring)

    def rolls(self, request: Request) -> None:
        self.bug("rolls")
        request.write(b"x")

    def start(self, features: int) -> None:
        self.bug("start")

    def reset(self) -> None:
        self.bug("reset")

    def drain(self) -> None:
        self.bug("drain")

    def close(self) -> None:
        self.bug("close")

    def config_written(self, offset: int, data: bytes) -> None:
        self.bug("config_written")

    def describe(self) -> str:
        self.bug("describe")
        return "dice,\nby the roll"

    def statistics(self) -> dict[str, int]:
        self.bug("statistics")
        return {"rolls": 3}


class Driver:
    """Does all that calls the device."""

    def __init__(self, function: PciFunction, registers: Any) -> None:
        self.function = function
        self.registers = registers(function)

    def set_up(self) -> None:
        self.registers.set(CommonCfg.device_status, 0)
        self.registers.place()
        self.registers.negotiate()
        self.ring = DriverRing(self.function.window, LAYOUT, base=BASE, event_idx=True)
        self.registers.enable(LAYOUT)
        self.registers.ready()

    def roll(self) -> bool:
        """Ask for a roll; tell whether it came."""
        self.ring.add([], [(DATA, 1)], "roll")
        self.ring.publish()
        self.registers.notify()
        while self.function.service():
            pass
        return bool(self.ring.reap(1))

    def everything(self) -> bool:
        self.set_up()
        self.function.read(0, 0x2000, 4)
        self.function.write(0, 0x2000, bytes(4))
        rolled = self.roll()
        self.registers.set(CommonCfg.device_status, 0)
        return rolled


@pytest.fixture
def make_driver(registers: Any) -> Iterator[Callable[..., Driver]]:
    made: list[PciFunction] = []

    def make(device: Device, **options: Any) -> Driver:
        made.append(PciFunction(device, pool=POOL, **options))
        return Driver(made[-1], registers)

    yield make
    for function in made:
        function.close()


def test_a_device_without_bugs_is_called_and_works(make_driver: Callable[..., Driver]) -> None:
    device = Buggy()
    driver = make_driver(device)
    assert driver.everything()
    assert device.calls == ["make_engine", "start", "config_written", "rolls", "reset"]
    assert driver.function.core.reason == ""
    assert (driver.function.describe(), driver.function.statistics()) == ("dice, by the roll", {"rolls": 3})


@pytest.mark.parametrize("error", [KeyError("a bug"), SystemExit(3), MemoryError()], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("at", DRIVEN)
def test_what_a_callback_raises_fails_the_device_with_the_reason(
    make_driver: Callable[..., Driver], caplog: pytest.LogCaptureFixture, at: str, error: BaseException
) -> None:
    device = Buggy()
    driver = make_driver(device)
    device.at, device.error = at, error
    rolled = driver.everything()
    assert rolled == (at == "reset")
    assert f" failed: {type(error).__name__}" in driver.function.core.reason
    assert driver.function.core.reason.startswith("Buggy: ")
    assert type(error).__name__ in caplog.text
    device.at = ""
    assert driver.everything(), "once the bug is gone, a reset mends it"


@pytest.mark.parametrize("at", [at for at in DRIVEN if at != "reset"])
def test_a_device_that_failed_asks_for_a_reset_and_does_nothing_until_then(
    make_driver: Callable[..., Driver], at: str
) -> None:
    driver = make_driver(device := Buggy())
    device.at = at
    driver.set_up()
    driver.function.read(0, 0x2000, 4)
    driver.function.write(0, 0x2000, bytes(4))
    driver.roll()
    assert driver.registers.status & Status.DEVICE_NEEDS_RESET
    assert driver.function.read(0, 0x1000, 1) == b"\2", "the driver was interrupted to see it"
    before = device.calls.count("rolls")
    assert not driver.roll()
    assert device.calls.count("rolls") == before


def test_a_device_that_could_not_be_reset_is_not_driven(make_driver: Callable[..., Driver]) -> None:
    """The driver reads 0, as it must (virtio 1.4, 4.1.4.3.2), and learns when it begins anew."""
    driver = make_driver(device := Buggy())
    driver.set_up()
    device.at = "reset"
    driver.registers.set(CommonCfg.device_status, 0)
    assert driver.registers.status == 0
    assert not driver.registers.negotiate() & Status.FEATURES_OK
    assert driver.registers.status & Status.DEVICE_NEEDS_RESET
    assert driver.function.core.reason == "Buggy: reset() failed: KeyError: 'a bug'"
    driver.registers.enable(LAYOUT)
    driver.registers.ready()
    assert driver.registers.get(CommonCfg.queue_enable) == 0
    assert "start" not in device.calls[2:]


def test_a_reset_that_failed_is_tried_again_for_the_next_client(make_driver: Callable[..., Driver]) -> None:
    driver = make_driver(device := Buggy())
    driver.set_up()
    device.at = "reset"
    driver.registers.set(CommonCfg.device_status, 0)
    device.at = ""
    driver.function.detach()
    driver.set_up()
    assert driver.roll()


@pytest.mark.parametrize("at", ["reset", "drain"])
def test_the_next_client_is_served_whatever_was_raised_when_one_left(
    make_driver: Callable[..., Driver], at: str
) -> None:
    driver = make_driver(device := Buggy())
    driver.set_up()
    window = os.fstat(driver.function.window.fd).st_ino
    device.at = at
    driver.function.detach()
    assert f"{at}() failed: KeyError: 'a bug'" in driver.function.core.reason
    assert os.fstat(driver.function.window.fd).st_ino != window
    device.at = ""
    driver.registers.set(CommonCfg.device_status, 0)
    driver.set_up()
    assert driver.roll()


@pytest.mark.parametrize("at", ["describe", "statistics", "close"])
def test_what_only_the_process_asks_fails_in_a_line(registers: Any, at: str) -> None:
    function = PciFunction(Buggy(at), pool=POOL)
    assert function.describe() == ("Buggy" if at == "describe" else "dice, by the roll")
    assert function.statistics() == ({} if at == "statistics" else {"rolls": 3})
    function.close()
    assert function.core.reason == f"Buggy: {at}() failed: KeyError: 'a bug'"


def test_a_device_refuses_to_reload_by_a_usage_error_and_fails_by_any_other(make_driver: Callable[..., Driver]) -> None:
    driver = make_driver(device := Buggy())
    errors = iter([UsageError("the image shrank"), KeyError("a bug")])

    def reload() -> None:
        raise next(errors)

    device.reload = reload  # type: ignore[method-assign]
    with pytest.raises(UsageError, match="the image shrank"):
        driver.function.reload()
    assert driver.function.core.reason == ""
    driver.function.reload()
    assert driver.function.core.reason == "Buggy: reload() failed: KeyError: 'a bug'"


def test_statistics_that_are_none_are_not_reported(make_driver: Callable[..., Driver]) -> None:
    driver = make_driver(device := Buggy())
    device.statistics = lambda: {"rolls": object()}  # type: ignore[method-assign, dict-item, return-value]
    assert driver.function.statistics() == {}
    assert "statistics() failed: TypeError" in driver.function.core.reason


def test_an_interrupt_from_the_keyboard_is_not_the_devices(make_driver: Callable[..., Driver]) -> None:
    driver = make_driver(device := Buggy())
    device.at, device.error = "start", KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        driver.set_up()
    device.at = ""


class PlainEngine:
    """All that an engine needs, in Python; raises in the method that ``at`` names."""

    def __init__(self, ring: DeviceRing, at: str = "") -> None:
        self.ring = ring
        self.at = at
        self.wanted = False
        self.requests = self.interrupts = 0

    def bug(self, name: str) -> None:
        if name == self.at:
            raise KeyError("a bug")

    def serve(self, turns: int) -> int:
        self.bug("serve")
        batch = self.ring.pop(16)
        for request in batch:
            request.write(b"y")
        self.ring.push(batch)
        self.requests += len(batch)
        self.wanted |= self.ring.publish()
        return BUSY if batch else IDLE

    def arm(self) -> bool:
        self.bug("arm")
        return self.ring.arm()

    def disarm(self) -> None:
        self.bug("disarm")
        self.ring.disarm()

    def rebase(self, base: int) -> None:
        self.bug("rebase")
        self.ring.rebase(base)

    def explain(self) -> BadRing:
        return BadRing("nothing")

    def close(self) -> None:
        self.bug("close")


class Engined(Buggy):
    def make_engine(self, queue: Queue, ring: DeviceRing) -> Any:
        return self.engine(ring)

    engine: Any


@pytest.mark.parametrize("threads", [False, True])
def test_an_engine_in_python_serves_a_queue_in_either_build(make_driver: Callable[..., Driver], threads: bool) -> None:
    device = Engined()
    device.engine = PlainEngine
    driver = make_driver(device, threads=threads)
    driver.set_up()
    assert driver.roll()
    assert driver.function.core.requests == 1


@pytest.mark.parametrize("at", ["serve", "arm", "disarm", "rebase", "close"])
def test_what_an_engine_raises_fails_the_device(make_driver: Callable[..., Driver], at: str) -> None:
    device = Engined()
    device.engine = lambda ring: PlainEngine(ring, at)
    driver = make_driver(device)
    driver.set_up()
    driver.roll()
    driver.registers.place(2 * BASE)
    driver.registers.set(CommonCfg.device_status, 0)
    assert "failed: KeyError: 'a bug'" in driver.function.core.reason
    device.engine = PlainEngine
    driver.set_up()
    assert driver.roll()


class Overridden(QueueEngine):
    """What only compiled code calls, in Python: it would be called in one build and not in the other."""

    def handle(self, count: int) -> None:
        raise AssertionError("called in one build only")


@pytest.mark.parametrize(
    ("engine", "why"),
    [
        (Overridden, "UsageError: Overridden is a Python subclass of QueueEngine, whose methods only compiled code"),
        (lambda ring: ring, "UsageError: DeviceRing does not implement nodma.device.base.Engine"),
    ],
)
def test_an_engine_that_cannot_work_in_both_builds_fails_loudly(
    make_driver: Callable[..., Driver], count_descriptors: Callable[[], int], engine: Any, why: str
) -> None:
    device = Engined()
    device.engine = engine
    driver = make_driver(device, threads=True)
    before = count_descriptors()
    driver.set_up()
    assert driver.registers.status & Status.DEVICE_NEEDS_RESET
    assert why in driver.function.core.reason
    del driver.ring
    assert count_descriptors() == before
