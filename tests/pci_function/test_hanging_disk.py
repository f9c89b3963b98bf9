"""A disk that does not answer keeps neither registers, nor resets, nor the next client, nor the end waiting."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nodma.builds import load_interpreted
from nodma.pci_function import PciFunction, queues
from nodma.ring import RingLayout
from nodma.spec.pci import Command, MsixControl
from nodma.spec.vfio_user import Region
from nodma.spec.virtio import Status
from nodma.spec.virtio_blk import BlkConfig, BlkRange, BlkRequest, BlkStatus, BlkType
from nodma.spec.virtio_pci import CommonCfg

DriverRing = load_interpreted("nodma.ring.driver_end").DriverRing
BASE = 0x10_0000_0000
LAYOUT = RingLayout.packed_at(0, 256)
CELLS, RANGE, EMPTY = 0x8000, 0x9000, 0xA000
SECONDS = 20.0
INLINE_PARTS = 130
"""More than a helper takes: the queue's own thread handles such a request."""


class Disk:
    """A function with a disk that has not answered yet; this thread is the VMM."""

    def __init__(self, function: PciFunction, registers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.function = function
        self.registers = registers(function)
        self.vector = os.eventfd(0, os.EFD_NONBLOCK)
        self.reached = threading.Semaphore(0)
        self.answers = threading.Event()
        self.calls = 0
        monkeypatch.setattr(function.device.image, "discard", self._discard)  # type: ignore[attr-defined]

    def _discard(self, *_: object) -> None:
        self.calls += 1
        self.reached.release()
        assert self.answers.wait(SECONDS)

    def start(self) -> None:
        self.function.interrupts.assign_vectors(1, [os.dup(self.vector)])
        self.registers.place(BASE, Command.MEMORY)
        control = self.function._msix_at + 2
        self.function.write(Region.CONFIG, control, int(MsixControl.ENABLE).to_bytes(2, "little"))
        assert self.registers.negotiate() & Status.FEATURES_OK
        self.ring = DriverRing(self.function.window, LAYOUT, base=BASE, event_idx=True)
        self.registers.enable(LAYOUT)
        self.registers.set(CommonCfg.queue_msix_vector, 1)
        self.registers.ready()

    def offer(self, kind: int = BlkType.DISCARD, *, number: int = 0, inline: bool = False) -> int:
        """Ask for something; return where its status will be."""
        memory = self.function.window.bytes
        cell = CELLS + 32 * number
        BlkRequest.codec.pack_into(memory, cell, kind, 0, 4)
        BlkRange.codec.pack_into(memory, RANGE, 8, 8, 0)
        memory[cell + 16] = 0xEE
        data = [(RANGE, BlkRange.size)] if kind == BlkType.DISCARD else []
        extra = [(EMPTY, 0)] * (INLINE_PARTS if inline else 0)
        answer = [(RANGE + 0x800, 512)] if kind == BlkType.IN else []
        self.ring.arm(1)
        assert self.ring.add([(cell, 16), *data, *extra], [*answer, (cell + 16, 1)], number)
        if self.ring.publish():
            self.registers.notify()
        return cell + 16

    def hang(self, *, inline: bool = False) -> int:
        """Have the disk hang in a request; return where its status will be."""
        status = self.offer(inline=inline)
        assert self.reached.acquire(timeout=SECONDS)
        return status

    def interrupted(self) -> bool:
        return bool(select.select([self.vector], [], [], SECONDS)[0]) and os.eventfd_read(self.vector) > 0

    def reset(self) -> None:
        self.registers.set(CommonCfg.device_status, 0)

    def wait_for_reset(self) -> None:
        """Read the status until it is 0, as a driver does (4.1.4.3.2)."""
        end = time.monotonic() + SECONDS
        while self.registers.get(CommonCfg.device_status):
            assert time.monotonic() < end
            time.sleep(0.001)

    def works(self) -> None:
        self.start()
        self.offer(BlkType.IN)
        assert self.interrupted()


@pytest.fixture
def disk(make_function: Callable[..., PciFunction], registers: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    monkeypatch.setattr(queues, "RESET_SECONDS", 0.05)
    made = Disk(make_function(threads=True), registers, monkeypatch)
    made.start()
    yield made
    made.answers.set()
    os.close(made.vector)


@pytest.mark.parametrize("inline", [False, True], ids=["helper", "queue"])
def test_a_reset_ends_when_the_disk_has_answered_and_keeps_nobody_waiting(disk: Disk, inline: bool) -> None:
    status = disk.hang(inline=inline)
    window = disk.function.window.bytes
    before = bytes(window[CELLS:])
    disk.reset()
    for _ in range(3):
        assert disk.registers.status == Status.DEVICE_NEEDS_RESET
        disk.function.service()
    # a driver that does not wait is not let in
    assert not disk.registers.negotiate() & Status.FEATURES_OK
    disk.registers.enable(LAYOUT)
    assert disk.registers.get(CommonCfg.queue_enable) == 0
    disk.reset()  # and asking again does not wait again
    assert "still under way" in disk.function.unfinished
    assert bytes(window[CELLS:]) == before
    disk.answers.set()
    disk.wait_for_reset()
    assert disk.function.unfinished == ""
    assert bytes(window[CELLS:]) == before  # what was cancelled is not given back, and not interrupted for
    assert window[status] == 0xEE
    assert disk.ring.reap(4) == []
    assert not select.select([disk.vector], [], [], 0)[0]
    disk.works()


def test_the_device_model_is_reset_when_nothing_is_under_way_any_more(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    resets: list[int] = []
    monkeypatch.setattr(disk.function.device, "reset", lambda: resets.append(1))
    disk.hang()
    disk.reset()
    assert not resets
    disk.answers.set()
    disk.wait_for_reset()
    assert resets == [1]


def test_the_main_thread_finds_the_end_of_a_reset_by_itself(disk: Disk) -> None:
    disk.hang()
    disk.reset()
    disk.answers.set()
    end = time.monotonic() + SECONDS
    while disk.function.unfinished:
        assert time.monotonic() < end
        disk.function.service()


def test_what_waits_behind_a_request_that_hangs_is_dropped(disk: Disk) -> None:
    for number in range(40):
        disk.offer(number=number)
    for _ in range(4):  # helpers
        assert disk.reached.acquire(timeout=SECONDS)
    disk.reset()
    disk.answers.set()
    disk.wait_for_reset()
    assert disk.calls == 4


def test_registers_are_written_while_the_queues_own_thread_waits_for_its_disk(disk: Disk) -> None:
    status = disk.hang(inline=True)
    other = os.eventfd(0, os.EFD_NONBLOCK)
    disk.function.interrupts.assign_vectors(1, [os.dup(other)])  # where its interrupt goes
    for _ in range(3):
        disk.registers.set(CommonCfg.config_msix_vector, 0)
    assert disk.function.window.bytes[status] == 0xEE
    disk.answers.set()
    assert select.select([other], [], [], SECONDS)[0]
    assert disk.function.window.bytes[status] == BlkStatus.OK
    assert not select.select([disk.vector], [], [], 0)[0]
    assert [number for number, _ in disk.ring.reap(4)] == [0]
    os.close(other)


def test_a_thread_that_is_paused_in_a_call_touches_nothing_before_it_is_resumed(disk: Disk) -> None:
    status = disk.hang(inline=True)
    with disk.function.core.paused_queues():
        disk.answers.set()
        assert not select.select([disk.vector], [], [], 0.3)[0]
        assert disk.function.window.bytes[status] == 0xEE
    assert disk.interrupted()
    assert disk.function.window.bytes[status] == BlkStatus.OK


@pytest.mark.parametrize("inline", [False, True], ids=["helper", "queue"])
def test_the_next_client_is_not_kept_waiting_and_its_driver_waits_for_the_reset(disk: Disk, inline: bool) -> None:
    disk.hang(inline=inline)
    old = disk.function.window
    disk.function.detach()
    assert disk.function.window is not old
    assert disk.registers.status == Status.DEVICE_NEEDS_RESET
    config = disk.function.read(0, 0x2000, BlkConfig.size)
    assert len(config) == BlkConfig.size
    disk.answers.set()
    disk.reset()
    disk.wait_for_reset()
    disk.works()


def test_the_end_waits_for_requests_that_are_there_and_no_longer(disk: Disk) -> None:
    disk.hang()
    disk.function.finish(0.05)
    disk.function.close()
    assert "still under way" in disk.function.unfinished
    disk.answers.set()


@pytest.mark.parametrize("count", [1, 60])
def test_the_end_does_the_requests_that_are_there(disk: Disk, count: int) -> None:
    disk.answers.set()
    statuses = [disk.offer(number=number) for number in range(count)]
    disk.function.finish(SECONDS)
    assert {disk.function.window.bytes[status] for status in statuses} == {BlkStatus.OK}
    disk.function.close()
    assert disk.function.unfinished == ""


def test_a_request_that_was_not_notified_is_done_at_the_end(disk: Disk) -> None:
    memory = disk.function.window.bytes
    BlkRequest.codec.pack_into(memory, CELLS, BlkType.IN, 0, 4)
    memory[CELLS + 16] = 0xEE
    disk.ring.add([(CELLS, 16)], [(RANGE, 512), (CELLS + 16, 1)], "request")
    disk.ring.publish()
    disk.function.finish(SECONDS)
    assert memory[CELLS + 16] == BlkStatus.OK


def test_an_image_that_cannot_be_synced_is_said_at_the_end(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = threading.Event()
    monkeypatch.setattr("nodma.device.image.CLOSE_SECONDS", 0.05)
    monkeypatch.setattr(os, "fdatasync", lambda _: answers.wait(SECONDS))
    disk.function.close()
    assert "was not synced: its disk does not answer" in disk.function.unfinished
    answers.set()


def test_an_image_that_has_grown_is_told_of_by_a_new_generation(disk: Disk) -> None:
    path = disk.function.device.image.path  # type: ignore[attr-defined]
    before = disk.registers.get(CommonCfg.config_generation)
    os.truncate(path, 2 << 20)
    disk.function.reload()
    assert BlkConfig(bytearray(disk.function.read(0, 0x2000, BlkConfig.size))).capacity == (2 << 20) // 512
    assert disk.registers.get(CommonCfg.config_generation) != before
