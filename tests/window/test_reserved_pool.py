"""A function's share of a pool: its reservation is its own, the rest is everybody's."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodma.errors import PoolTooSmall, UsageError
from nodma.window import SLOT, BouncePool, Direction, Mapping, ReservedPool, Window

OWN, REST = 8 * SLOT, 16 * SLOT


class Shares:
    """Two shares of a pool, of which each counts what it has out."""

    def __init__(self, window: Window) -> None:
        rest = BouncePool(window, 2 * OWN, REST)
        self.common = rest
        self.each = [ReservedPool(BouncePool(window, n * OWN, OWN), rest, reclaim=self.none_left) for n in (0, 1)]
        self.out: list[list[Mapping]] = [[], []]

    def none_left(self) -> None:
        raise PoolTooSmall("nothing is out that could come back")

    def take(self, which: int, slots: int) -> bool:
        mapping = self.each[which].try_map(slots * SLOT, Direction.FROM_DEVICE)
        if mapping:
            self.out[which].append(mapping)
        return mapping is not None


@pytest.fixture
def shares() -> Iterator[Shares]:
    with Window.create(2 * OWN + REST) as window:
        yield Shares(window)


def test_a_share_has_its_own_and_then_of_the_rest(shares: Shares) -> None:
    assert all(shares.take(0, 1) for _ in range(8 + 16))
    assert not shares.take(0, 1)
    assert shares.each[0].stats.peak == 24
    assert shares.each[0].stats.slots == 8
    assert all(shares.take(1, 1) for _ in range(8))
    assert not shares.take(1, 1)


def test_a_full_share_reclaims_and_counts_it(shares: Shares) -> None:
    flood = shares.each[0]
    held = [flood.map(SLOT, Direction.FROM_DEVICE) for _ in range(24)]
    flood.reclaim = lambda: flood.unmap(held.pop())
    held.append(flood.map(SLOT, Direction.FROM_DEVICE))
    assert flood.stats.full == 1
    assert (flood.stats.used, flood.stats.maps, flood.stats.unmaps) == (24, 25, 1)


def test_no_mapping_is_larger_than_the_reservation_holds(shares: Shares) -> None:
    assert shares.each[0].max_mapping == OWN
    with pytest.raises(PoolTooSmall, match=f"takes 1 to {OWN} bytes"):
        shares.each[0].try_map(OWN + 1, Direction.FROM_DEVICE)


def test_bytes_are_counted_where_they_are_copied(shares: Shares) -> None:
    share = shares.each[1]
    for _ in range(10):  # out of the reservation, too
        mapping = share.map(b"x" * 100, Direction.TO_DEVICE)
        into = bytearray(50)
        share.sync_for_cpu(mapping, into)
        share.sync_for_device(mapping, b"yy")
        shares.out[1].append(mapping)
        assert into == b"x" * 50
    share.unmap(shares.out[1].pop(), into)
    assert into[:2] == b"yy"
    assert (share.stats.bytes_in, share.stats.bytes_out) == (1020, 550)
    assert shares.each[0].stats.bytes_in == 0


def test_slots_go_back_to_where_they_came_from(shares: Shares) -> None:
    """A common slot never becomes one of the reservation's, nor the other way round."""
    share = shares.each[0]
    for _ in range(3):
        held = [share.map(SLOT, Direction.FROM_DEVICE) for _ in range(24)]
        assert (share.own.stats.used, shares.common.stats.used, share.stats.used) == (8, 16, 24)
        for mapping in reversed(held):
            share.unmap(mapping)
        assert (share.own.stats.used, shares.common.stats.used, share.stats.used) == (0, 0, 0)
    assert (share.stats.maps, share.stats.unmaps) == (72, 72)


def test_what_only_the_device_writes_is_not_counted_as_copied_in(shares: Shares) -> None:
    share = shares.each[0]
    share.map(b"x" * 10, Direction.FROM_DEVICE)
    share.map(10, Direction.TO_DEVICE)
    assert share.stats.bytes_in == 0
    share.map(b"x" * 10, Direction.BIDIRECTIONAL)
    assert share.stats.bytes_in == 10


def test_each_wait_for_slots_is_counted(shares: Shares) -> None:
    share = shares.each[0]
    held = [share.map(SLOT, Direction.FROM_DEVICE) for _ in range(24)]
    share.reclaim = lambda: share.unmap(held.pop(0))
    for number in (1, 2, 3):
        held.append(share.map(SLOT, Direction.FROM_DEVICE))
        assert share.stats.full == number


def test_reservation_and_rest_lie_in_one_window(shares: Shares) -> None:
    with Window.create(OWN) as other, pytest.raises(UsageError, match="in the same window"):
        ReservedPool(BouncePool(other, 0, OWN), shares.common, reclaim=shares.none_left)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 8))))
def test_a_reservation_is_always_to_be_had_whatever_the_other_does(events: list[tuple[int, int]]) -> None:
    with Window.create(2 * OWN + REST) as window:
        shares = Shares(window)
        for which, slots in events:
            if slots:
                shares.take(which, slots)
            else:
                while shares.out[which]:
                    shares.each[which].unmap(shares.out[which].pop())
                assert shares.take(which, 8)
        taken = [range(mapping.offset, mapping.offset + mapping.slots * SLOT) for out in shares.out for mapping in out]
        taken.sort(key=lambda span: span.start)
        assert all(below.stop <= above.start for below, above in itertools.pairwise(taken))
        for share, out in zip(shares.each, shares.out, strict=True):
            assert share.stats.used == sum(mapping.slots for mapping in out)
