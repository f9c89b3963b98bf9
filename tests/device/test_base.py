"""Devices of one's own: what a subclass is given, and what becomes of its mistakes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nodma import Device, Layout, Queue, Request, blob, le32
from nodma.errors import UsageError
from nodma.pci_function import PciFunction
from nodma.ring import DriverRing, RingLayout
from nodma.spec.virtio import Feature, Status
from nodma.spec.virtio_pci import CommonCfg

POOL = 64 << 10
BASE = 0x10_0000_0000


class Echo(Device):
    """Gives back what it gets, in capitals."""

    device_type = 40
    queues = (
        Queue("echoes", size=16),
        Queue("broken", size=16),
        Queue("other", size=8, handler="echoes"),
        Queue("several", size=16, batch=True),
    )

    class Config(Layout):
        times = le32(1, rw=True)

    config: Config

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []

    def start(self, features: int) -> None:
        self.log.append("start")

    def reset(self) -> None:
        self.log.append("reset")

    def close(self) -> None:
        self.log.append("close")

    def config_written(self, offset: int, data: bytes) -> None:
        if offset == 0 and len(data) == 4:
            self.config.times = int.from_bytes(data, "little")

    def echoes(self, request: Request) -> None:
        request.write(request.read().upper() * self.config.times)

    def several(self, requests: list[Request]) -> None:
        self.log.append(f"{len(requests)} at once")
        for request in requests:
            self.echoes(request)

    def broken(self, request: Request) -> None:
        raise KeyError("a bug")


class Bench:
    """The function, and a ring on each of its queues."""

    def __init__(self, registers: type[Any], device: Device | None = None, **options: Any) -> None:
        self.function = PciFunction(device or Echo(), pool=POOL, **options)
        self.device = self.function.device
        self.registers = registers(self.function)
        self.registers.place()
        assert self.registers.negotiate() & Status.FEATURES_OK
        self.rings = []
        for index, queue in enumerate(self.device.queues):
            layout = RingLayout.packed_at(4096 * index, queue.size)
            self.rings.append(DriverRing(self.function.window, layout, base=BASE, event_idx=True))
            self.registers.enable(layout, index=index)
        self.registers.ready()

    def ask(self, index: int, data: bytes, room: int) -> bytes:
        self.function.window.view(0x8000, len(data))[:] = data
        self.rings[index].add([(0x8000, len(data))], [(0x9000, room)], "x")
        self.rings[index].publish()
        self.registers.notify(index)
        while self.function.service():
            pass
        ((_, written),) = self.rings[index].reap(1) or [(None, 0)]
        return bytes(self.function.window.view(0x9000, written))


@pytest.fixture
def bench(registers: type[Any]) -> Iterator[Bench]:
    bench = Bench(registers)
    yield bench
    bench.function.close()


def test_a_request_is_handled_and_given_back(bench: Bench) -> None:
    assert bench.ask(0, b"hello", 100) == b"HELLO"
    assert bench.ask(2, b"hello", 3) == b"HEL"
    assert bench.function.core.requests == 2


def test_a_queue_may_take_its_requests_by_the_batch(bench: Bench) -> None:
    ring = bench.rings[3]
    bench.function.window.view(0x8000, 3)[:] = b"abc"
    for place in range(3):
        ring.add([(0x8000 + place, 1)], [(0x9000 + place, 1)], place)
    ring.publish()
    bench.registers.notify(3)
    while bench.function.service():
        pass
    assert ring.reap(4) == [(0, 1), (1, 1), (2, 1)]
    assert bytes(bench.function.window.view(0x9000, 3)) == b"ABC"
    assert bench.device.log == ["start", "3 at once"]  # type: ignore[attr-defined]


def test_a_long_queue_is_served_a_few_batches_at_a_time(registers: type[Any]) -> None:
    """Between them others, and the client, have their turn."""

    class Long(Echo):
        queues = (Queue("echoes", size=256),)

    bench = Bench(registers, device=Long())
    for number in range(100):
        bench.rings[0].add([(0x8000, 1)], [(0x9000, 1)], number)
    bench.rings[0].publish()
    bench.registers.notify(0)
    assert bench.function.service(), "there is more"
    assert len(bench.rings[0].reap(256)) == 64
    while bench.function.service():
        pass
    assert len(bench.rings[0].reap(256)) == 36
    bench.function.close()


def test_a_chain_that_breaks_a_rule_fails_a_device_with_handlers_too(bench: Bench) -> None:
    assert bench.ask(0, b"x", POOL) == b""
    assert bench.registers.status & Status.DEVICE_NEEDS_RESET
    assert bench.function.core.reason.startswith("queue echoes: buffer of 65536 bytes at 0x1000009000")
    assert bench.function.core.counters.outside == 1


def test_a_device_says_its_class_and_counts_nothing_unless_it_says_more() -> None:
    device = Fine()
    assert device.describe() == "Fine"
    assert device.statistics() == {}
    device.config_changed()  # nobody is there to be told
    device.config_written(0, b"x")
    device.reload()


def test_a_polled_queue_needs_no_notification_until_it_was_idle(registers: type[Any]) -> None:
    bench = Bench(registers, poll_ns=10**12)
    assert bench.function.service()  # it may be idle, and is looked at all the same
    bench.function.window.view(0x8000, 2)[:] = b"ab"
    bench.rings[0].add([(0x8000, 2)], [(0x9000, 2)], "x")
    bench.rings[0].publish()
    assert bench.function.service()
    assert bench.rings[0].reap(1) == [("x", 2)]
    assert bench.function.core.counters.notifications == 0
    bench.function.core._poll_ns = 0
    while bench.function.service():
        pass
    bench.function.close()


def test_the_driver_reads_and_writes_the_configuration(bench: Bench) -> None:
    assert bench.function.read(0, 0x2000, 8) == b"\1\0\0\0\0\0\0\0"
    bench.function.write(0, 0x2000, b"\2\0\0\0")
    assert bench.ask(0, b"ab", 100) == b"ABAB"


def test_a_device_that_fails_asks_for_a_reset_and_works_again_after(
    bench: Bench, registers: type[Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert bench.ask(1, b"x", 1) == b""
    assert bench.registers.status & Status.DEVICE_NEEDS_RESET
    assert "KeyError: 'a bug'" in caplog.text
    assert bench.ask(0, b"x", 1) == b""  # nothing is done until then
    bench.registers.set(CommonCfg.device_status, 0)
    assert bench.registers.status == 0
    assert bench.device.log == ["start", "reset"]  # type: ignore[attr-defined]


def test_a_change_of_configuration_is_announced(bench: Bench) -> None:
    before = bench.registers.get(CommonCfg.config_generation)
    bench.device.config_changed()
    assert bench.registers.get(CommonCfg.config_generation) == before + 1
    assert bench.function.read(0, 0x1000, 1) == b"\2"  # ISR: configuration


def test_features_are_offered_with_those_of_the_transport(bench: Bench) -> None:
    offered = bench.function.core.offered
    for feature in (Feature.VERSION_1, Feature.ACCESS_PLATFORM, Feature.SWIOTLB, Feature.EVENT_IDX):
        assert offered & feature.mask


def test_queues_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match="queue 'x' has 3 entries"):
        Queue("x", size=3)

    class Forgetful(Device):
        device_type = 1
        queues = (Queue("nothing"),)

    with pytest.raises(UsageError, match="Forgetful has no method 'nothing' to handle queue 'nothing'"):
        PciFunction(Forgetful(), pool=POOL)


class Fine(Device):
    device_type = 42
    queues = (Queue("rolls", size=16),)

    def rolls(self, request: Request) -> None:
        pass


class Long(Layout):
    much = blob(4097)


BAD_DEVICES: dict[str, tuple[str, object]] = {
    r"Fine.device_type is None: it must be a virtio device id from 1 to 63": ("device_type", None),
    r"Fine.device_type is 0: it must": ("device_type", 0),
    r"Fine.device_type is 64: it must": ("device_type", 64),
    r"Fine.device_type is 'block'": ("device_type", "block"),
    r"Fine.pci_class is \(256, 0\): it must be two bytes": ("pci_class", (256, 0)),
    r"Fine.pci_class is \(1,\): it must be two bytes": ("pci_class", (1,)),
    r"Fine.features is 16777216: only bits 0 to 23 and 50 to 63": ("features", 1 << 24),
    r"Fine.features is 562949953421312: only": ("features", 1 << 49),
    r"Fine.features is -1: only": ("features", -1),
    r"Fine.features is 18446744073709551616: only": ("features", 1 << 64),
    r"Fine.features is None: only": ("features", None),
    r"Fine has no queues": ("queues", ()),
    r"Fine.queues has 'rolls', which is not a Queue": ("queues", ("rolls",)),
    r"Fine has no method 'throws' to handle queue 'rolls'": ("queues", (Queue("rolls", handler="throws"),)),
    r"Fine.config must be a Layout of at most 4096 bytes, got 6": ("config", 6),
    r"Fine.config must be a Layout of at most 4096 bytes, got ": ("config", Long.new()),
}


@pytest.mark.parametrize("why", BAD_DEVICES)
def test_a_device_that_cannot_be_is_refused_with_a_message_for_its_author(
    why: str, count_descriptors: Callable[[], int]
) -> None:
    device = Fine()
    setattr(device, *BAD_DEVICES[why])
    before = count_descriptors()
    with pytest.raises(UsageError, match=why):
        PciFunction(device, pool=POOL, threads=True)
    assert count_descriptors() == before


@pytest.mark.parametrize(
    ("name", "value"),
    [("device_type", 1), ("device_type", 63), ("features", (1 << 24) - 1 | 0x3FFF << 50), ("pci_class", (255, 255))],
)
def test_the_last_values_that_a_device_can_have_are_taken(name: str, value: object) -> None:
    device = Fine()
    setattr(device, name, value)
    PciFunction(device, pool=POOL).close()


def test_a_forgotten_call_of_the_base_class_is_told() -> None:
    class Forgetful(Fine):
        def __init__(self) -> None:
            self.sides = 6

    with pytest.raises(UsageError, match=r"Forgetful.__init__\(\) does not call super\(\).__init__\(\)"):
        PciFunction(Forgetful(), pool=POOL)


def test_the_names_of_the_package_are_there() -> None:
    import nodma

    assert {name: getattr(nodma, name) for name in nodma.__all__}
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        nodma.nonsense  # noqa: B018
