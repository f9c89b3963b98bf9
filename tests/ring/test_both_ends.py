"""Both ends on one window, in any order: nothing lost, nothing twice, and whoever sleeps is woken."""

from __future__ import annotations

from types import ModuleType
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from nodma.ring import RingLayout
from nodma.window import Window

SIZE = 256 << 10
BASE = 0x10_0000_0000
CELL = 64


class BothEnds(RuleBasedStateMachine):
    """A driver that sleeps until interrupted, and a device that sleeps until notified."""

    driver_end: ClassVar[ModuleType]
    device_end: ClassVar[ModuleType]

    @initialize(order=st.integers(0, 6), indirect=st.booleans(), event_idx=st.booleans())
    def start(self, order: int, indirect: bool, event_idx: bool) -> None:
        size = 1 << order
        self.window = Window.create(SIZE)
        layout = RingLayout.packed_at(0, size)
        self.driver = self.driver_end.DriverRing(
            self.window,
            layout,
            base=BASE,
            event_idx=event_idx,
            tables=16 << 10,
            table_entries=4 if indirect else 0,
        )
        self.device = self.device_end.DeviceRing(
            self.window, layout, base=BASE, first=0, limit=SIZE, indirect=indirect, event_idx=event_idx
        )
        self.cells = list(range(1024))
        self.serial = 0
        self.sent: dict[int, int] = {}  # by serial: the cell
        self.taken: list[Any] = []
        self.notified = self.interrupted = True  # neither sleeps yet
        self.device_sleeps = self.driver_sleeps = False
        self.longest = 4 if indirect else size

    @rule(parts=st.integers(1, 4), count=st.integers(1, 8))
    def driver_adds(self, parts: int, count: int) -> None:
        for _ in range(count):
            parts = min(parts, self.longest)
            cell = self.cells.pop(0)
            at = (64 << 10) + CELL * cell
            self.window.view(at, 4)[:] = self.serial.to_bytes(4, "little")
            pieces = [(at + 4 * n, 4) for n in range(parts)]
            if not self.driver.add(pieces[:1], pieces[1:], (self.serial, cell)):
                self.cells.append(cell)
                return
            self.sent[self.serial] = cell
            self.serial += 1

    @rule()
    def driver_publishes(self) -> None:
        if self.driver.publish():
            self.device_sleeps = False

    @rule(most=st.integers(1, 20))
    def device_takes(self, most: int) -> None:
        if not self.device_sleeps:
            self.taken += self.device.pop(most)

    @rule(data=st.data())
    def device_gives_back(self, data: st.DataObject) -> None:
        if self.device_sleeps or not self.taken:
            return
        chosen = data.draw(st.lists(st.sampled_from(self.taken), unique_by=id, min_size=1))
        self.taken = [request for request in self.taken if request not in chosen]
        for request in chosen:
            serial = bytes(request.read(4))
            for part in request.writable:
                part[:] = serial
            request.written = sum(map(len, request.writable))
        self.device.push(chosen)

    @rule()
    def device_publishes(self) -> None:
        if not self.device_sleeps and self.device.publish():
            self.driver_sleeps = False

    @rule()
    def device_goes_to_sleep(self) -> None:
        """As a device does: only when it has nothing to give back, and found nothing after arming."""
        if self.device_sleeps or self.taken:
            return
        if self.device.publish():
            self.driver_sleeps = False
        self.device_sleeps = not self.device.arm()

    @rule(after=st.integers(1, 4))
    def driver_goes_to_sleep(self, after: int) -> None:
        if self.driver.publish():
            self.device_sleeps = False
        self.driver_reaps()
        if self.driver.outstanding >= after:
            self.driver_sleeps = not self.driver.arm(after)

    @rule()
    def driver_reaps(self) -> None:
        for (serial, cell), written in self.driver.reap(64):
            assert self.sent.pop(serial) == cell, "given back once, and as it was sent"
            at = (64 << 10) + CELL * cell
            assert self.window.view(at + 4, written).tobytes() == serial.to_bytes(4, "little") * (written // 4)
            self.cells.append(cell)

    @invariant()
    def nobody_sleeps_through_work(self) -> None:
        if self.device_sleeps:
            assert not self.device.pending(), "requests were published, and no notification was asked for"
        if self.driver_sleeps and self.device_sleeps:
            assert not self.driver.outstanding, "both ends wait for each other"

    def teardown(self) -> None:
        self.driver.publish()
        for _ in range(3):
            while batch := self.device.pop(64):
                self.taken += batch
            self.device.push(self.taken)
            self.taken = []
            self.device.publish()
            self.driver_reaps()
        assert not self.sent, "requests were lost"
        self.window.close()


@pytest.mark.parametrize("kinds", [("interpreted", "interpreted"), ("compiled", "compiled")], ids=str)
def test_both_ends_in_any_order(kinds: tuple[str, str], request: pytest.FixtureRequest) -> None:
    class Machine(BothEnds):
        driver_end = request.getfixturevalue("load_end")("driver_end", kinds[0])
        device_end = request.getfixturevalue("load_end")("device_end", kinds[1])

    run_state_machine_as_test(Machine, settings=settings(stateful_step_count=40))
