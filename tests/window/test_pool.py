"""The bounce pool: slots, segments, alignment, zeroing, waiting."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nodma.errors import PoolTooSmall, UsageError
from nodma.window import BouncePool, Direction, Mapping, Window
from nodma.window.pool import PAGE, SEGMENT_SLOTS, SLOT

SIZE = 2 << 20


@pytest.fixture
def window() -> Iterator[Window]:
    with Window.create(SIZE) as window:
        window.bytes[:] = b"\xee" * SIZE  # what an earlier user left
        yield window


def test_a_mapping_has_the_bytes_and_zeros_to_its_slots_end(window: Window) -> None:
    pool = BouncePool(window, 0, SIZE)
    mapping = pool.map(b"x" * 3000, Direction.TO_DEVICE)
    assert window.view(mapping.offset, 4096).tobytes() == b"x" * 3000 + bytes(1096)


def test_what_the_device_is_to_write_is_zeroed_whatever_the_caller_had(window: Window) -> None:
    pool = BouncePool(window, 0, SIZE)
    for buffer in (700, b"secret" * 100):
        mapping = pool.map(buffer, Direction.FROM_DEVICE)
        assert window.view(mapping.offset, SLOT).tobytes() == bytes(SLOT)


def test_both_directions_copy_in_and_out(window: Window) -> None:
    pool = BouncePool(window, 0, SIZE)
    mapping = pool.map(b"question", Direction.BIDIRECTIONAL)
    window.view(mapping.offset, 6)[:] = b"answer"
    into = bytearray(6)
    pool.sync_for_cpu(mapping, into)
    assert into == b"answer"
    pool.sync_for_device(mapping, b"next")
    pool.unmap(mapping, into)
    assert into == b"nexter"
    assert (pool.stats.bytes_in, pool.stats.bytes_out) == (12, 12)


def test_pages_begin_on_pages_and_segments_are_never_crossed(window: Window) -> None:
    pool = BouncePool(window, SLOT, SIZE - SLOT)
    small = [pool.map(1, Direction.FROM_DEVICE) for _ in range(3)]
    for length in (PAGE, PAGE + 1, 100_000, SEGMENT_SLOTS * SLOT):
        mapping = pool.map(length, Direction.FROM_DEVICE)
        assert mapping.offset % PAGE == 0
        segment = SEGMENT_SLOTS * SLOT
        assert mapping.offset // segment == (mapping.offset + length - 1) // segment
    assert {mapping.offset % SLOT for mapping in small} == {0}


def test_a_mapping_of_a_page_begins_on_one_and_a_smaller_one_anywhere(window: Window) -> None:
    pool = BouncePool(window, 0, 9 * SLOT)
    lengths = (1, PAGE, 1, PAGE - 1, 1, PAGE - 1)
    assert [pool.map(length, Direction.FROM_DEVICE).offset // SLOT for length in lengths] == [0, 2, 1, 4, 6, 7]


def test_an_odd_slot_is_used_when_no_page_is_left(window: Window) -> None:
    pool = BouncePool(window, 0, 4 * SLOT)
    first = [pool.map(1, Direction.FROM_DEVICE) for _ in range(4)]
    pool.unmap(first[1])
    pool.unmap(first[2])
    assert pool.map(PAGE, Direction.FROM_DEVICE).offset == SLOT


def test_statistics_and_limits(window: Window) -> None:
    pool = BouncePool(window, 100, 10 * SLOT)  # 100 bytes in: nine whole slots are left
    assert (pool.stats.slots, pool.max_mapping) == (9, 9 * SLOT)
    kept = pool.map(5 * SLOT, Direction.FROM_DEVICE)
    pool.unmap(pool.map(2 * SLOT, Direction.FROM_DEVICE))
    pool.unmap(kept)
    assert (pool.stats.used, pool.stats.peak, pool.stats.maps, pool.stats.unmaps) == (0, 7, 2, 2)
    for length in (0, 9 * SLOT + 1):
        with pytest.raises(PoolTooSmall, match="takes 1 to 18432 bytes at once"):
            pool.try_map(length, Direction.FROM_DEVICE)
    with pytest.raises(UsageError, match="no slot of 2048 bytes fits"):
        BouncePool(window, 100, SLOT)


def test_waits_and_copies_are_each_counted(window: Window) -> None:
    held: list[Mapping] = []
    pool = BouncePool(window, 0, SLOT, reclaim=lambda: pool.unmap(held.pop(), bytearray(3)))
    for number in range(1, 4):
        held.append(pool.map(b"12345", Direction.TO_DEVICE))
        stats = pool.stats
        assert (stats.full, stats.unmaps, stats.maps) == (number - 1, number - 1, number)
        assert (stats.bytes_in, stats.bytes_out, stats.used, stats.peak) == (5 * number, 3 * (number - 1), 1, 1)


def test_unmapping_twice_is_refused(window: Window) -> None:
    pool = BouncePool(window, 0, SIZE)
    mapping = pool.map(1, Direction.FROM_DEVICE)
    pool.unmap(mapping)
    with pytest.raises(UsageError, match="already unmapped"):
        pool.unmap(mapping)


def test_a_full_pool_makes_the_caller_wait_for_another_thread(window: Window) -> None:
    """It is back-pressure, not an error (DMB-D3)."""
    pool = BouncePool(window, 0, SLOT)
    held = pool.map(1, Direction.FROM_DEVICE)
    assert pool.try_map(1, Direction.FROM_DEVICE) is None
    got: list[Mapping] = []
    waiter = threading.Thread(target=lambda: got.append(pool.map(1, Direction.FROM_DEVICE)))
    waiter.start()
    while not pool.stats.full:  # until it waits
        pass
    assert not got
    pool.unmap(held)
    waiter.join(timeout=30)
    assert len(got) == 1
    assert pool.stats.full >= 1


def test_a_full_pool_asks_its_owner_to_reclaim(window: Window) -> None:
    """It is back-pressure, not an error (DMB-D3)."""
    pool = BouncePool(window, 0, 2 * SLOT, reclaim=lambda: pool.unmap(held.pop()))
    held = [pool.map(1, Direction.FROM_DEVICE) for _ in range(2)]
    pool.map(2 * SLOT, Direction.FROM_DEVICE)
    assert (held, pool.stats.full) == ([], 2)


class Pool(RuleBasedStateMachine):
    """Map and unmap in any order: live mappings never overlap, and nothing is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.window = Window.create(SIZE)
        self.pool = BouncePool(self.window, 5 * SLOT, 700 * SLOT)
        self.live: list[tuple[Mapping, bytes]] = []
        self.serial = 0

    @rule(length=st.one_of(st.integers(1, 3 * PAGE), st.integers(1, SEGMENT_SLOTS * SLOT)))
    def map(self, length: int) -> None:
        self.serial += 1
        data = (self.serial.to_bytes(4, "little") * (length // 4 + 1))[:length]
        mapping = self.pool.try_map(data, Direction.TO_DEVICE)
        if mapping is None:
            assert self.longest_run() < -(-length // SLOT), "there was room"
        else:
            self.live.append((mapping, data))

    def longest_run(self) -> int:
        """Free slots in a row within a segment, counted without the pool's help."""
        taken = {mapping.offset // SLOT + n for mapping, _ in self.live for n in range(mapping.slots)}
        longest = run = 0
        for slot in range(5, 705):
            run = 0 if slot in taken else 1 if slot % SEGMENT_SLOTS == 0 else run + 1
            longest = max(longest, run)
        return longest

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def unmap(self, data: st.DataObject) -> None:
        mapping, _ = self.live.pop(data.draw(st.integers(0, len(self.live) - 1)))
        self.pool.unmap(mapping)

    @invariant()
    def every_mapping_keeps_its_bytes(self) -> None:
        for mapping, data in self.live:
            assert mapping.view == data
        assert self.pool.stats.used == sum(mapping.slots for mapping, _ in self.live)

    def teardown(self) -> None:
        for mapping, _ in self.live:
            self.pool.unmap(mapping)
        assert self.pool.stats.used == 0
        full = [self.pool.try_map(SEGMENT_SLOTS * SLOT, Direction.FROM_DEVICE) for _ in range(4)]
        assert all(full), "a pool that is empty again has all its whole segments"
        self.window.close()


TestPool = Pool.TestCase
