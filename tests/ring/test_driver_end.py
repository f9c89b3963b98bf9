"""The driver's end: what it writes, and what a lying device cannot make it believe."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from nodma.errors import DeviceFailed, UsageError
from nodma.ring import RingLayout
from nodma.spec.virtio import DescFlag, Descriptor
from nodma.window import Window

SIZE = 64 << 10
BASE = 0x10_0000_0000
N = 4
LAYOUT = RingLayout.packed_at(0x100, N)
TABLES = 0x1000


@pytest.fixture
def window() -> Iterator[Window]:
    with Window.create(SIZE) as window:
        window.bytes[:] = b"\xee" * SIZE
        yield window


def make(module: ModuleType, window: Window, **options: Any) -> Any:
    return module.DriverRing(window, LAYOUT, **({"base": BASE, "event_idx": True} | options))


def descriptor(window: Window, at: int) -> tuple[int, ...]:
    return Descriptor.codec.unpack_from(window.bytes, at)


def give_back(window: Window, idx: int, head: int, length: int) -> None:
    struct.pack_into("<II", window.bytes, LAYOUT.used + 4 + 8 * ((idx - 1) % N), head, length)
    struct.pack_into("<H", window.bytes, LAYOUT.used + 2, idx)


def test_the_rings_are_cleared_whatever_was_there(driver_end: ModuleType, window: Window) -> None:
    make(driver_end, window)
    assert window.view(LAYOUT.desc, LAYOUT.end - LAYOUT.desc).tobytes() == bytes(LAYOUT.end - LAYOUT.desc)


def test_a_chain_is_written_as_2_7_13_has_it(driver_end: ModuleType, window: Window) -> None:
    ring = make(driver_end, window)
    assert ring.add([(0x2000, 16)], [(0x3000, 4096), (0x2010, 1)], "a")
    ring.publish()
    head = struct.unpack_from("<HHH", window.bytes, LAYOUT.avail)[2]
    addr, length, flags, following = descriptor(window, LAYOUT.desc + 16 * head)
    assert (addr, length, flags) == (BASE + 0x2000, 16, DescFlag.NEXT)
    addr, length, flags, following = descriptor(window, LAYOUT.desc + 16 * following)
    assert (addr, length, flags) == (BASE + 0x3000, 4096, DescFlag.NEXT | DescFlag.WRITE)
    assert descriptor(window, LAYOUT.desc + 16 * following) == (BASE + 0x2010, 1, DescFlag.WRITE, 0)


def test_an_indirect_table_takes_one_descriptor(driver_end: ModuleType, window: Window) -> None:
    ring = make(driver_end, window, tables=TABLES, table_entries=3)
    for number in range(N):
        assert ring.add([(0x2000, 16)], [(0x3000, 8), (0x2010, 1)], number)
    assert not ring.add([(0x2000, 16)], [], "one too many")
    ring.publish()
    for slot in range(N):
        head = struct.unpack_from("<H", window.bytes, LAYOUT.avail + 4 + 2 * slot)[0]
        table = TABLES + 48 * head
        assert descriptor(window, LAYOUT.desc + 16 * head) == (BASE + table, 48, DescFlag.INDIRECT, 0)
        assert descriptor(window, table) == (BASE + 0x2000, 16, DescFlag.NEXT, 1)
        assert descriptor(window, table + 16) == (BASE + 0x3000, 8, DescFlag.NEXT | DescFlag.WRITE, 2)
        assert descriptor(window, table + 32) == (BASE + 0x2010, 1, DescFlag.WRITE, 0)


@pytest.mark.parametrize("entries", [0, 3])
def test_a_request_of_no_part_or_too_many_is_refused(driver_end: ModuleType, window: Window, entries: int) -> None:
    ring = make(driver_end, window, tables=TABLES, table_entries=entries)
    for parts in ([], [(0, 1)] * (N + 1)):
        with pytest.raises(UsageError, match=f"a request of {len(parts)} parts"):
            ring.add(parts, [], "x")


def test_descriptors_come_back_with_their_request(driver_end: ModuleType, window: Window) -> None:
    ring = make(driver_end, window)
    for lap in range(1, 50):
        assert ring.add([(0, 1), (1, 1)], [(2, 100)], lap)
        assert not ring.add([(0, 1), (1, 1)], [], "no room")
        ring.publish()
        head = struct.unpack_from("<H", window.bytes, LAYOUT.avail + 4 + 2 * ((lap - 1) % N))[0]
        give_back(window, lap, head, 42)
        assert ring.pending()
        assert ring.reap(8) == [(lap, 42)]
        assert (ring.outstanding, ring.room) == (0, N)


OWN, OTHER = "own", "other"


@pytest.mark.parametrize(
    ("idx", "head", "length", "why"),
    [
        (2, OWN, 0, "returned 2 requests, of 1 outstanding"),
        (65535, OWN, 0, "returned 65535 requests, of 1 outstanding"),
        (1, OTHER, 0, "returned head {other}, which is not outstanding"),
        (1, N, 0, "returned head 4, which is not outstanding"),
        (1, 2**32 - 1, 0, "returned head 4294967295, which is not outstanding"),
        (1, OWN, 101, "says it wrote 101 bytes into a request that takes 100"),
    ],
)
def test_a_lying_device_is_found_out(
    driver_end: ModuleType, window: Window, idx: int, head: int | str, length: int, why: str
) -> None:
    ring = make(driver_end, window)
    ring.add([], [(0, 100)], "mine")
    ring.publish()
    own = struct.unpack_from("<H", window.bytes, LAYOUT.avail + 4)[0]
    other = (own + 1) % N
    give_back(window, idx, {OWN: own, OTHER: other}.get(str(head), head), length)  # type: ignore[arg-type]
    with pytest.raises(DeviceFailed, match=why.format(other=other)):
        ring.reap(8)


def test_a_head_is_given_back_only_once(driver_end: ModuleType, window: Window) -> None:
    ring = make(driver_end, window)
    for token in "ab":
        ring.add([], [(0, 8)], token)
    ring.publish()
    head = struct.unpack_from("<H", window.bytes, LAYOUT.avail + 4)[0]
    give_back(window, 1, head, 0)
    assert ring.reap(8) == [("a", 0)]
    give_back(window, 2, head, 0)
    with pytest.raises(DeviceFailed, match="is not outstanding"):
        ring.reap(8)


@pytest.mark.parametrize("start", [0, 65533], ids=["first lap", "where the index wraps"])
def test_the_device_is_notified_of_the_entry_that_it_named_and_no_other(
    driver_end: ModuleType, window: Window, start: int
) -> None:
    """Whatever is published at once, a notification is wanted just if avail_event is among it (2.7.10)."""
    ring = make(driver_end, window)
    at = 0

    def add(count: int) -> bool:
        nonlocal at
        for _ in range(count):
            assert ring.add([(0, 1)], [], "x")
        wanted = bool(ring.publish())
        for _ in range(count):
            head = struct.unpack_from("<H", window.bytes, LAYOUT.avail + 4 + 2 * (at % N))[0]
            at += 1
            give_back(window, at & 0xFFFF, head, 0)
        assert len(ring.reap(8)) == count
        return wanted

    while at < start:
        add(1)
    for count in (1, 2, 3, 4):
        for event in range(-2, 6):
            struct.pack_into("<H", window.bytes, LAYOUT.used + 4 + 8 * N, (at + event) & 0xFFFF)
            assert add(count) == (0 <= event < count), (count, event)
    assert not ring.publish(), "nothing was published"


def test_without_event_idx_the_devices_flag_decides(driver_end: ModuleType, window: Window) -> None:
    ring = make(driver_end, window, event_idx=False)
    for flag, wanted in ((0, True), (1, False), (0xFFFE, True)):
        struct.pack_into("<H", window.bytes, LAYOUT.used, flag)
        ring.add([(0, 1)], [], "x")
        assert ring.publish() == wanted
    assert not ring.publish()


@pytest.mark.parametrize("event_idx", [False, True])
def test_arming_asks_for_the_interrupt_of_a_later_request_and_sees_what_is_done(
    driver_end: ModuleType, window: Window, event_idx: bool
) -> None:
    ring = make(driver_end, window, event_idx=event_idx)
    ring.disarm()
    assert struct.unpack_from("<H", window.bytes, LAYOUT.avail)[0] == (0 if event_idx else 1)
    for after in (1, 3):
        assert not ring.arm(after)
        assert struct.unpack_from("<H", window.bytes, LAYOUT.avail)[0] == 0
        event = struct.unpack_from("<H", window.bytes, LAYOUT.avail + 4 + 2 * N)[0]
        assert event == (after - 1 if event_idx else 0)
    ring.add([(0, 1)], [], "x")
    ring.publish()
    assert not ring.arm()
    give_back(window, 1, struct.unpack_from("<H", window.bytes, LAYOUT.avail + 4)[0], 0)
    assert ring.arm()
    assert ring.reap(0) == []
    assert ring.pending()
    assert ring.reap(1) == [("x", 0)]
    assert not ring.arm()


def test_what_a_ring_has_room_for(driver_end: ModuleType, window: Window) -> None:
    """Direct chains take a descriptor a part; through tables a request takes one, unless it has one part alone."""
    direct, tables = make(driver_end, window), make(driver_end, window, tables=TABLES, table_entries=3)
    assert (direct.longest, tables.longest) == (N, 3)
    assert direct.add([(0, 1)] * N, [], "all")
    assert (direct.room, direct.outstanding) == (0, 1)
    assert tables.add([(0, 1)] * 3, [], "table")
    assert tables.add([(0, 1)], [], "one")
    assert (tables.room, tables.outstanding) == (N - 2, 2)
    heads = struct.unpack_from("<HH", window.bytes, LAYOUT.avail + 4)
    assert [descriptor(window, LAYOUT.desc + 16 * head)[2] for head in heads] == [DescFlag.INDIRECT, 0]


def test_a_device_may_have_written_as_much_as_all_writable_parts_take(driver_end: ModuleType, window: Window) -> None:
    for entries in (0, 4):
        for written, good in ((110, True), (111, False)):
            ring = make(driver_end, window, tables=TABLES, table_entries=entries)
            assert ring.add([(0x2000, 5)], [(0x3000, 100), (0x4000, 10)], "x")
            ring.publish()
            give_back(window, 1, struct.unpack_from("<H", window.bytes, LAYOUT.avail + 4)[0], written)
            if good:
                assert ring.reap(1) == [("x", written)]
            else:
                with pytest.raises(DeviceFailed, match="a request that takes 110"):
                    ring.reap(1)


def test_tables_link_each_part_to_the_next(driver_end: ModuleType, window: Window) -> None:
    ring = make(driver_end, window, tables=TABLES, table_entries=4)
    assert ring.add([(0x2000, 1), (0x2100, 2)], [(0x3000, 3), (0x3100, 4)], "four")
    assert ring.add([(0x2000, 1), (0x2100, 2)], [], "two")
    ring.publish()
    heads = struct.unpack_from("<HH", window.bytes, LAYOUT.avail + 4)
    tables = [TABLES + 64 * head for head in heads]
    assert [descriptor(window, tables[0] + 16 * n)[2:] for n in range(4)] == [
        (DescFlag.NEXT, 1),
        (DescFlag.NEXT, 2),
        (DescFlag.NEXT | DescFlag.WRITE, 3),
        (DescFlag.WRITE, 0),
    ]
    assert [descriptor(window, tables[1] + 16 * n)[1:] for n in range(2)] == [(1, DescFlag.NEXT, 1), (2, 0, 0)]


def test_arming_without_a_number_asks_for_the_next_request(driver_end: ModuleType, window: Window) -> None:
    ring = make(driver_end, window)
    ring.arm()
    assert struct.unpack_from("<H", window.bytes, LAYOUT.avail + 4 + 2 * N)[0] == 0
