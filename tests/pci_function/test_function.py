"""The PCI function as a client sees it: regions, resets, and registers written in any order."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodma.device import BlockDevice, Device, Queue, Request
from nodma.device.image import Image
from nodma.errors import UsageError
from nodma.pci import ConfigSpace
from nodma.pci_function import PciFunction
from nodma.ring import RingLayout
from nodma.spec.pci import CapId, ExpressCapability, ExpressDeviceCap, ExpressDeviceControl, MsixCapability, MsixControl
from nodma.spec.vfio_user import Region
from nodma.spec.virtio import Status
from nodma.spec.virtio_pci import CfgType, CommonCfg, Isr, VirtioPciCfgCap

POOL = 1 << 20


@pytest.fixture
def function(make_function: Callable[..., PciFunction]) -> PciFunction:
    return make_function(queues=3)


def config(function: PciFunction) -> ConfigSpace:
    return ConfigSpace.parse(function.read(Region.CONFIG, 0, 4096))


@pytest.mark.parametrize("pool", [0, 1, 4096, 32 << 10, 3 << 20, 8 << 30])
def test_a_pool_that_is_no_window_is_refused(image: Path, pool: int) -> None:
    with Image(image) as opened, pytest.raises(UsageError, match="power of two from 64K to 4G"):
        PciFunction(BlockDevice(opened, pool=POOL), pool=pool)


def test_more_queues_than_a_function_can_have_are_refused() -> None:
    class Many(Device):
        device_type = 42
        queues = tuple(Queue(f"q{number}", 16, "handle") for number in range(512))

        def handle(self, request: Request) -> None:
            pass

    with pytest.raises(UsageError, match="512 queues: a function has at most 511"):
        PciFunction(Many(), pool=POOL)
    Many.queues = Many.queues[1:]
    PciFunction(Many(), pool=POOL).close()


def test_the_vector_table_and_the_pending_bits_are_in_the_register_bar(function: PciFunction) -> None:
    table, pending, reserved = 0x4000, 0x6000, 0x7000
    function.write(0, table + 16, b"address!data" + bytes(4))
    assert function.read(0, table + 16, 16) == b"address!data" + bytes(4)
    assert function.read(0, table + 12, 4) == b"\1\0\0\0", "masked since reset"
    end = 16 * 4
    function.write(0, table + end - 4, bytes(8))  # the last control, and what is behind the table
    function.write(0, table + end, b"nothing.")
    assert function.read(0, table + end - 4, 8) == bytes(8)
    function.interrupts.mask_vectors(0, 1, True)
    function.interrupts.raise_vector(0)
    assert function.read(0, pending, 8) == b"\1" + bytes(7)
    assert function.read(0, reserved, 4) == bytes(4)


def test_several_writes_at_once_are_done_in_turn_until_one_is_refused(function: PciFunction, registers: Any) -> None:
    def select(queue: int) -> tuple[int, int, bytes]:
        return 0, CommonCfg.queue_select.offset, queue.to_bytes(2, "little")

    with pytest.raises(UsageError, match="do not lie in region 1"):
        function.write_all([select(1), select(2), (1, 0, b"x"), select(0)])
    assert registers(function).get(CommonCfg.queue_select) == 2
    function.write_all([(2, 0, b"data"), (0, 0x3000, b"\0\0")])  # these pause nobody
    assert function.window.view(0, 4).tobytes() == b"data"
    assert function.core.counters.notifications == 1


def test_accesses_outside_a_region_are_refused(function: PciFunction) -> None:
    for region, offset, count in ((0, 32 << 10, 1), (0, (32 << 10) - 2, 4), (2, POOL, 1), (1, 0, 1), (7, 4093, 4),
                                  (2, 2**64 - 1, 2), (9, 0, 0), (6, 0, 4)):  # fmt: skip
        with pytest.raises(UsageError, match=f"do not lie in region {region}"):
            function.read(region, offset, count)
        with pytest.raises(UsageError, match=f"do not lie in region {region}"):
            function.write(region, offset, bytes(count or 1))


def test_the_window_can_be_read_and_written_by_messages_too(function: PciFunction) -> None:
    function.write(2, 100, b"hello")
    assert function.window.view(100, 5).tobytes() == b"hello"
    assert function.read(2, 98, 8) == b"\0\0hello\0"


def test_registers_can_be_read_and_written_in_any_width(function: PciFunction, registers: Any) -> None:
    driver = registers(function)
    driver.set(CommonCfg.queue_select, 1)
    function.write(0, CommonCfg.queue_desc.offset, (0x1122_3344).to_bytes(4, "little"))
    function.write(0, CommonCfg.queue_desc.offset + 4, (0x5566_7788).to_bytes(4, "little"))
    function.write(0, CommonCfg.queue_desc.offset + 1, b"\xaa")
    assert driver.get(CommonCfg.queue_desc) == 0x5566_7788_1122_AA44
    whole = function.read(0, 0, CommonCfg.size)
    assert whole == b"".join(function.read(0, at, 1) for at in range(CommonCfg.size))
    assert function.read(0, CommonCfg.size, 8) == bytes(8)


def test_queue_registers_show_what_queues_there_are(function: PciFunction, registers: Any) -> None:
    driver = registers(function)
    assert driver.get(CommonCfg.num_queues) == 3
    driver.set(CommonCfg.queue_select, 2)
    assert (driver.get(CommonCfg.queue_size), driver.get(CommonCfg.queue_notify_off)) == (256, 2)
    for bad in (0, 3, 512, 65535):
        driver.set(CommonCfg.queue_size, bad)
    assert driver.get(CommonCfg.queue_size) == 256
    driver.set(CommonCfg.queue_size, 64)
    assert driver.get(CommonCfg.queue_size) == 64
    driver.set(CommonCfg.queue_msix_vector, 4)  # there are 0 to 3
    assert driver.get(CommonCfg.queue_msix_vector) == 0xFFFF
    driver.set(CommonCfg.queue_select, 3)
    assert driver.get(CommonCfg.queue_size) == 0
    driver.set(CommonCfg.queue_enable, 1)
    assert driver.status == 0


def test_features_beyond_the_second_word_read_as_zero(function: PciFunction, registers: Any) -> None:
    driver = registers(function)
    for word in (2, 3, 2**32 - 1):
        driver.set(CommonCfg.device_feature_select, word)
        driver.set(CommonCfg.driver_feature_select, word)
        driver.set(CommonCfg.driver_feature, 0xFFFFFFFF)
        assert (driver.get(CommonCfg.device_feature), driver.get(CommonCfg.driver_feature)) == (0, 0)
    assert function.core.accepted == 0


def test_the_features_are_read_word_by_word(function: PciFunction, registers: Any) -> None:
    driver = registers(function)
    words = []
    for word in (0, 1, 2, 3):
        driver.set(CommonCfg.device_feature_select, word)
        words.append(driver.get(CommonCfg.device_feature))
    assert words == [function.core.offered & 0xFFFFFFFF, function.core.offered >> 32, 0, 0]
    assert all(words[:2])
    driver.set(CommonCfg.driver_feature_select, 1)
    driver.set(CommonCfg.driver_feature, 0x12345678)
    driver.set(CommonCfg.driver_feature_select, 0)
    driver.set(CommonCfg.driver_feature, 0x9ABCDEF0)
    assert function.core.accepted == 0x12345678_9ABCDEF0


def test_doorbells_are_told_of_with_their_places(make_function: Callable[..., PciFunction]) -> None:
    function = make_function(queues=3, threads=True)
    assert function.notifiers(0) == [(0x3000 + 4 * n, 4, function.core.doorbells[n]) for n in range(3)]
    assert [function.notifiers(region) for region in (1, 2, Region.CONFIG)] == [(), (), ()]
    assert make_function(queues=3).notifiers(0) == []


def test_doorbells_are_renewed_all_or_none(
    make_function: Callable[..., PciFunction], monkeypatch: pytest.MonkeyPatch
) -> None:
    function = make_function(queues=2, threads=True)
    closed: list[int] = []
    function.interrupts.close_fds = closed.extend
    before = function.core.doorbells
    make, made = os.eventfd, []

    def once(*arguments: int) -> int:
        if made:
            raise OSError(errno.ENFILE, "too many open files")
        made.append(make(*arguments))
        return made[0]

    with monkeypatch.context() as patch:
        patch.setattr(os, "eventfd", once)
        with pytest.raises(OSError, match="too many"):
            function.detach()
    assert (function.core.doorbells, closed) == (before, [])
    function.detach()
    assert closed == before != function.core.doorbells
    for fd in closed:
        os.close(fd)


def test_function_level_reset_by_device_control(function: PciFunction, registers: Any) -> None:
    found = config(function).find(CapId.EXPRESS)
    assert found
    assert isinstance(found.structure, ExpressCapability)
    assert found.structure.device_caps & ExpressDeviceCap.FLR
    driver = registers(function)
    driver.place()
    driver.negotiate()
    before = function.read(Region.CONFIG, 0, 256)
    at = found.offset + ExpressCapability.device_control.offset
    function.write(Region.CONFIG, at, int(ExpressDeviceControl.INITIATE_FLR).to_bytes(2, "little"))
    assert driver.status == 0
    assert driver.get(CommonCfg.driver_feature) == 0
    assert function.read(Region.CONFIG, 0, 256) == before  # BARs too, and the bit reads as zero


def test_after_a_function_level_reset_a_driver_starts_without_writing_the_bars(
    function: PciFunction, registers: Any
) -> None:
    """As Linux does under QEMU, which answers reads of the BARs from its own copy."""
    found = config(function).find(CapId.EXPRESS)
    assert found
    driver = registers(function)
    driver.place()
    at = found.offset + ExpressCapability.device_control.offset
    function.write(Region.CONFIG, at, int(ExpressDeviceControl.INITIATE_FLR).to_bytes(2, "little"))
    driver.negotiate()
    driver.enable(RingLayout.packed_at(0, 16))
    driver.ready()
    assert driver.status == 15


def test_msix_control_is_followed(function: PciFunction) -> None:
    found = config(function).find(CapId.MSIX)
    assert found
    at = found.offset + MsixCapability.control.offset
    function.write(Region.CONFIG, at, int(MsixControl.ENABLE).to_bytes(2, "little"))
    assert function.interrupts.msix_on
    assert function.read(Region.CONFIG, at, 2) == (MsixControl.ENABLE | 3).to_bytes(2, "little")
    function.reset()
    assert function.interrupts.msix_on  # it is configuration space's, and that stays
    function.detach()
    assert not function.interrupts.msix_on


class Cfg:
    """The PCI configuration access capability."""

    def __init__(self, function: PciFunction) -> None:
        self.function = function
        found = config(function).virtio(CfgType.PCI)
        assert found
        self.at = found.offset

    def aim(self, bar: int, offset: int, length: int) -> None:
        for field, value in (
            (VirtioPciCfgCap.bar, bar),
            (VirtioPciCfgCap.offset, offset),
            (VirtioPciCfgCap.length, length),
        ):
            self.function.write(Region.CONFIG, self.at + field.offset, value.to_bytes(field.size, "little"))

    @property
    def data(self) -> bytes:
        return self.function.read(Region.CONFIG, self.at + VirtioPciCfgCap.pci_cfg_data.offset, 4)

    @data.setter
    def data(self, data: bytes) -> None:
        self.function.write(Region.CONFIG, self.at + VirtioPciCfgCap.pci_cfg_data.offset, data)


def test_registers_are_reached_through_configuration_space(function: PciFunction, registers: Any) -> None:
    cfg = Cfg(function)
    cfg.aim(0, CommonCfg.num_queues.offset, 2)
    assert cfg.data == b"\3\0\0\0"
    cfg.aim(0, CommonCfg.device_status.offset, 1)
    cfg.data = b"\3\xff\xff\xff"
    assert registers(function).status == Status.ACKNOWLEDGE | Status.DRIVER
    cfg.aim(2, 4096, 4)
    cfg.data = b"data"
    assert function.window.view(4096, 4).tobytes() == b"data"


def test_what_the_window_into_a_bar_must_not_be_aimed_at_reads_as_zeros(function: PciFunction) -> None:
    """Neither configuration space, nor an access across a register, nor one beyond the BAR (4.1.4.9)."""
    cfg = Cfg(function)
    end = function.regions[0].size
    function.window.bytes[:8] = b"\xff" * 8
    for bar, offset, length in (
        (Region.CONFIG, 0, 4),
        (1, 0, 4),
        (2, 0, 3),
        (2, 0, 8),
        (2, 2, 4),
        (2, 1, 2),
        (2, POOL, 4),
        (2, POOL - 2, 4),
        (0, end, 4),
    ):
        cfg.aim(bar, offset, length)
        assert cfg.data == bytes(4), (bar, offset, length)
        cfg.data = b"\xaa" * 4
    assert function.window.view(0, 8).tobytes() == b"\xff" * 8
    for length, data in ((1, b"\xff\0\0\0"), (2, b"\xff\xff\0\0"), (4, b"\xff" * 4)):
        cfg.aim(2, 4, length)
        assert cfg.data == data
    cfg.aim(2, POOL - 4, 4)
    cfg.data = b"last"
    assert function.window.view(POOL - 4, 4).tobytes() == b"last"


def test_reading_beside_that_window_accesses_nothing(function: PciFunction) -> None:
    cfg = Cfg(function)
    cfg.aim(0, 0x1000, 1)  # the ISR status, which a read clears
    at = cfg.at + VirtioPciCfgCap.pci_cfg_data.offset
    for begin, count, cleared in ((at - 4, 4, False), (at + 4, 4, False), (at + 3, 1, True), (at - 1, 2, True)):
        function.core.isr = Isr.QUEUE
        function.read(Region.CONFIG, begin, count)
        assert (function.core.isr == 0) == cleared, (begin - at, count)


@given(st.integers(0, 255), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_whatever_the_window_into_a_bar_is_aimed_at(bar: int, offset: int, length: int) -> None:
    function = SHARED.function()
    function.detach()
    cfg = Cfg(function)
    cfg.aim(bar, offset, length)
    good = bar in (0, 2) and length in (1, 2, 4) and offset % length == 0
    if not (good and offset + length <= function.regions[bar].size):
        assert cfg.data == bytes(4)
    cfg.data = b"\0\0\0\0"


def test_a_client_that_leaves_takes_its_window_along(function: PciFunction, registers: Any) -> None:
    old = function.window
    old.view(0, 6)[:] = b"secret"
    driver = registers(function)
    driver.place()
    driver.negotiate()
    function.detach()
    assert function.window is not old
    assert function.window.view(0, 6).tobytes() == bytes(6)
    assert old.fd == -1
    assert driver.status == 0
    assert function.read(Region.CONFIG, 4, 2) == bytes(2)
    assert function.read(Region.CONFIG, 0x18, 8) == b"\x0c" + bytes(7)


class Shared:
    """One function for the examples of a property, on an image that nobody may change."""

    def __init__(self) -> None:
        self._made: PciFunction | None = None
        self.path = Path()

    def function(self) -> PciFunction:
        assert self._made
        return self._made

    def open(self, path: Path) -> None:
        path.write_bytes(b"untouched"[:8] * 8192)
        self.path = path
        self.path.chmod(0o600)
        self._made = PciFunction(BlockDevice(Image(path), pool=64 << 10, queues=2), pool=64 << 10)


SHARED = Shared()


@pytest.fixture(autouse=True, scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    SHARED.open(tmp_path_factory.mktemp("shared") / "disk.img")
    yield
    SHARED.function().close()


accesses = st.tuples(
    st.sampled_from([0, 0, 0, 0, 2, 7, 7, 1, 8]),
    st.one_of(
        st.sampled_from([field.offset for field in CommonCfg.fields]),
        st.integers(0, 0xFF),
        st.integers(0, 0x7FFF),
        st.integers(0, 2**64 - 1),
    ),
    st.one_of(st.binary(max_size=8), st.sampled_from([b"\xff" * 4, b"\0\0\0\0", b"\1\0", b"\x0f", b"\x0b", b"\2\0"])),
    st.booleans(),
)


@given(st.lists(accesses, max_size=80))
def test_registers_in_any_order_never_harm(operations: list[tuple[int, int, bytes, bool]]) -> None:
    function = SHARED.function()
    before = SHARED.path.read_bytes()
    for region, offset, data, write in operations:
        try:
            if write:
                function.write(region, offset, data)
            else:
                assert len(function.read(region, offset, len(data))) == len(data)
        except UsageError:
            assert region in (1, 8) or offset + len(data) > function.regions[region].size
        for _ in range(4):
            function.service()
    assert SHARED.path.read_bytes() == before
    function.detach()
