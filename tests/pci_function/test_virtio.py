"""The status machine, the policy, and a window that moves (virtio 1.4, 2.1 and 3.1; SW-D2, SW-V1)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from nodma.ring import RingLayout
from nodma.spec.pci import MsixControl, PciStatus, Type0Header
from nodma.spec.profiles import Policy
from nodma.spec.vfio_user import Region
from nodma.spec.virtio import Feature, Status
from nodma.spec.virtio_pci import CommonCfg

BASE = 0x10_0000_0000
LAYOUT = RingLayout.packed_at(0, 16)
HEADER, DATA, STATUS = 0x8000, 0x9000, 0x8010


SECTOR_4 = (4).to_bytes(4, "little")


def test_a_disk_works_from_status_to_data(disk: Any) -> None:
    disk.start()
    disk.offer_read()
    disk.work()
    assert (disk.answer, disk.function.window.bytes[STATUS]) == (SECTOR_4, 0)
    assert disk.ring.reap(1) == [("read", 513)]


def test_the_policy_required_refuses_a_driver_that_does_not_take_the_feature(disk: Any) -> None:
    disk.registers.place()
    status = disk.registers.negotiate(disk.core.offered & ~Feature.SWIOTLB.mask)
    assert not status & Status.FEATURES_OK
    assert "VIRTIO_F_SWIOTLB (bit 27), which this device's policy requires" in disk.core.reason
    assert disk.core.counters.refused == 1
    disk.registers.set(CommonCfg.device_status, Status.FAILED)
    assert disk.registers.status & Status.FAILED
    disk.registers.set(CommonCfg.device_status, 0)
    assert disk.registers.negotiate() & Status.FEATURES_OK  # a driver that knows it may come next


@pytest.mark.parametrize(
    ("features", "why"),
    [(lambda core: core.offered | 1 << 40, "were not offered"), (lambda core: Feature.SWIOTLB.mask, "VERSION_1")],
)
def test_features_that_cannot_be_are_refused(disk: Any, features: Any, why: str) -> None:
    assert not disk.registers.negotiate(features(disk.core)) & Status.FEATURES_OK
    assert why in disk.core.reason


def test_under_hopeful_an_outside_queue_is_caught_counted_and_not_followed(
    make_disk: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    disk = make_disk(policy=Policy.HOPEFUL)
    disk.registers.place()
    assert disk.registers.negotiate(disk.core.offered & ~Feature.SWIOTLB.mask) & Status.FEATURES_OK
    disk.registers.enable(LAYOUT, 0x1234_0000)
    assert disk.registers.status & Status.DEVICE_NEEDS_RESET
    assert disk.core.counters.outside == 1
    assert "descriptor table of 256 bytes at 0x12340000 is outside the window" in caplog.text
    assert disk.registers.get(CommonCfg.queue_enable) == 0


@pytest.mark.parametrize("policy", list(Policy))
def test_an_outside_buffer_is_caught_counted_and_not_followed(make_disk: Callable[..., Any], policy: Policy) -> None:
    disk = make_disk(policy=policy)
    disk.start()
    disk.ring.add([(HEADER, 16)], [(2 << 20, 512), (STATUS, 1)], "outside")
    disk.ring.publish()
    disk.registers.notify()
    disk.work()
    assert disk.registers.status & Status.DEVICE_NEEDS_RESET
    assert disk.core.counters.outside == 1
    assert "buffer of 512 bytes at 0x1000200000" in disk.core.reason
    assert not disk.ring.pending()
    disk.registers.notify()
    disk.work()  # and nothing happens until a reset
    assert disk.core.requests == 0


def test_needs_reset_interrupts_a_driver_that_is_ready(disk: Any) -> None:
    disk.start()
    disk.core.fail("because")
    assert disk.function.read(0, 0x1000, 1) == b"\2"
    disk.registers.set(CommonCfg.device_status, 0)
    disk.registers.place()
    disk.registers.negotiate()
    disk.core.fail("too early")
    assert disk.function.read(0, 0x1000, 1) == b"\0"
    disk.registers.ready()
    assert disk.function.read(0, 0x1000, 1) == b"\2"


def test_status_bits_stay_until_reset(disk: Any) -> None:
    disk.registers.set(CommonCfg.device_status, Status.ACKNOWLEDGE | Status.DRIVER)
    disk.registers.set(CommonCfg.device_status, Status.ACKNOWLEDGE)
    assert disk.registers.status == Status.ACKNOWLEDGE | Status.DRIVER
    disk.registers.set(CommonCfg.device_status, Status.DEVICE_NEEDS_RESET)  # the device's to set
    assert not disk.registers.status & Status.DEVICE_NEEDS_RESET
    disk.registers.set(CommonCfg.device_status, 0)
    assert disk.registers.status == 0


def test_a_driver_in_the_wrong_order_is_told_so(disk: Any) -> None:
    disk.registers.place()
    disk.registers.enable(LAYOUT)
    assert "enabled before FEATURES_OK" in disk.core.reason
    disk.registers.set(CommonCfg.device_status, 0)
    disk.registers.set(CommonCfg.device_status, Status.DRIVER_OK)
    assert disk.core.reason == "DRIVER_OK without FEATURES_OK"
    assert disk.registers.status & Status.DEVICE_NEEDS_RESET


def test_a_queue_cannot_be_enabled_while_the_window_is_nowhere(disk: Any) -> None:
    disk.registers.negotiate()
    disk.registers.enable(LAYOUT)
    assert "while the window's BAR decodes no address" in disk.core.reason


def test_nothing_is_handled_before_driver_ok(disk: Any) -> None:
    disk.registers.place()
    disk.registers.negotiate()
    disk.set_up()
    disk.offer_read()
    disk.work()
    assert not disk.ring.pending()
    disk.registers.ready()
    disk.work()
    assert disk.ring.pending()


def test_addresses_are_those_of_the_window_wherever_it_is_now(disk: Any) -> None:
    disk.start()
    disk.offer_read()
    disk.work()
    moved = 0x77_0000_0000
    disk.registers.place(moved)
    disk.offer_read(moved)
    disk.work()
    assert len(disk.ring.reap(8)) == 2
    disk.offer_read(BASE)  # where it was
    disk.work()
    assert disk.registers.status & Status.DEVICE_NEEDS_RESET
    assert disk.core.counters.outside == 1


def test_requests_wait_while_memory_is_not_decoded(disk: Any) -> None:
    disk.start()
    disk.registers.place(BASE, command=0)
    disk.offer_read()
    disk.work()
    assert not disk.ring.pending()
    disk.registers.place(BASE)
    disk.work()
    assert disk.ring.reap(1) == [("read", 513)]


def test_a_reset_keeps_the_windows_contents_and_forgets_the_rest(disk: Any) -> None:
    disk.start()
    disk.function.window.view(0xA000, 4)[:] = b"keep"
    disk.registers.set(CommonCfg.device_status, 0)
    assert disk.function.window.view(0xA000, 4).tobytes() == b"keep"
    assert disk.registers.get(CommonCfg.queue_enable) == 0
    assert disk.registers.get(CommonCfg.queue_desc) == 0
    assert disk.core.accepted == 0
    disk.registers.notify()
    disk.work()


def test_spurious_notifications_do_no_harm(disk: Any) -> None:
    disk.start()
    for index in (0, 1, 500, 1023):
        disk.registers.notify(index)
    disk.work()
    assert disk.registers.status == 15


def test_the_isr_status_gathers_causes_and_its_read_takes_them_and_the_line_back(disk: Any) -> None:
    """4.1.4.5: INTx is asserted until the ISR status is read."""
    line = os.eventfd(0, os.EFD_NONBLOCK)
    disk.function.interrupts.assign_intx(os.dup(line))
    disk.start()
    disk.offer_read()
    disk.work()
    assert os.eventfd_read(line) == 1
    disk.function.device.config_changed()
    assert disk.function.read(Region.CONFIG, Type0Header.status.offset, 1)[0] & PciStatus.INTERRUPT
    assert disk.function.read(0, 0x1000, 1) == b"\3"
    assert not disk.function.read(Region.CONFIG, Type0Header.status.offset, 1)[0] & PciStatus.INTERRUPT
    assert disk.function.read(0, 0x1000, 1) == b"\0"
    disk.function.interrupts.mask_intx(False)
    with pytest.raises(BlockingIOError):
        os.eventfd_read(line)  # it was de-asserted
    os.close(line)


def test_with_msix_a_queue_leaves_the_isr_status_alone(disk: Any) -> None:
    control = disk.function._msix_at + 2
    vectors = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
    disk.function.interrupts.assign_vectors(0, [os.dup(fd) for fd in vectors])
    disk.function.write(Region.CONFIG, control, int(MsixControl.ENABLE).to_bytes(2, "little"))
    disk.registers.set(CommonCfg.config_msix_vector, 0)
    disk.start()
    disk.registers.set(CommonCfg.queue_msix_vector, 1)
    disk.offer_read()
    disk.work()
    assert os.eventfd_read(vectors[1]) == 1
    assert disk.function.core.isr == 0
    disk.function.device.config_changed()
    assert os.eventfd_read(vectors[0]) == 1
    assert not disk.function.read(Region.CONFIG, Type0Header.status.offset, 1)[0] & PciStatus.INTERRUPT
    assert disk.function.read(0, 0x1000, 1) == b"\2"
    assert disk.core.interrupted == 2
    for fd in vectors:
        os.close(fd)


def test_a_change_before_the_driver_is_ready_interrupts_nobody(disk: Any) -> None:
    before = disk.registers.get(CommonCfg.config_generation)
    disk.function.device.config_changed()
    assert disk.registers.get(CommonCfg.config_generation) == before + 1
    assert disk.function.read(0, 0x1000, 1) == b"\0"
    for _ in range(256):
        disk.function.device.config_changed()
    assert disk.registers.get(CommonCfg.config_generation) == before + 1, "it is a byte"


def test_each_fault_is_counted_once(disk: Any) -> None:
    for number in range(1, 4):
        disk.start()
        disk.ring.add([(HEADER, 16)], [(2 << 20, 512), (STATUS, 1)], "outside")
        disk.ring.publish()
        disk.registers.notify()
        assert not disk.function.service(), "there is nothing more to do"
        disk.core.fail("a second reason")
        assert "buffer of 512 bytes" in disk.core.reason
        assert (disk.core.counters.needs_reset, disk.core.counters.outside) == (number, number)
        disk.registers.set(CommonCfg.device_status, 0)
        assert disk.core.counters.resets == number


def test_a_polled_queue_is_looked_at_for_so_long_after_its_last_request(
    make_disk: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [10**9]
    monkeypatch.setattr("nodma.pci_function.virtio.time.monotonic_ns", lambda: now[0])
    disk = make_disk(poll_ns=1000)
    disk.start()
    now[0] += 999
    assert disk.function.service()
    disk.offer_read()
    now[0] += 500
    assert disk.function.service()
    assert disk.ring.reap(1) == [("read", 513)]
    now[0] += 999
    assert disk.function.service()
    now[0] += 1
    assert not disk.function.service()


def test_what_is_there_at_the_end_is_done_in_its_time(disk: Any) -> None:
    disk.start()
    disk.offer_read()
    disk.function.finish(0.0)
    assert not disk.ring.pending()
    disk.function.finish(30.0)
    assert disk.ring.reap(1) == [("read", 513)]
    disk.registers.set(CommonCfg.device_status, 0)
    disk.function.finish(30.0)  # there is nothing to wait for


def test_features_are_settled_by_features_ok(disk: Any) -> None:
    """2.2: what the driver writes after it changes nothing; queues that are in use keep their addresses and size."""
    disk.start()
    accepted = disk.core.accepted
    for word in (0, 1):
        disk.registers.set(CommonCfg.driver_feature_select, word)
        disk.registers.set(CommonCfg.driver_feature, 0)
    assert disk.core.accepted == accepted
    for field in (CommonCfg.queue_desc, CommonCfg.queue_driver, CommonCfg.queue_device, CommonCfg.queue_size):
        before = disk.registers.get(field)
        disk.registers.set(field, 8)
        assert disk.registers.get(field) == before
    disk.registers.set(CommonCfg.queue_enable, 0)
    assert disk.registers.get(CommonCfg.queue_enable) == 1
    disk.offer_read()
    disk.work()
    assert disk.ring.reap(1) == [("read", 513)]
