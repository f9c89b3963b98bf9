"""The memory bill: what the formulas say of loads whose needs are known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodma.errors import UsageError
from nodma.pool_sizing import Disk, SlotDemand, pool_for, ring_bytes, slots_needed
from nodma.spec.profiles import DMB, MAX_POOL, MIN_POOL, SWIOTLB

KIB = 1 << 10


def test_a_read_of_4_kib_takes_16_kib_in_pages_and_10_in_slots() -> None:
    assert slots_needed(Disk(depth=1), slot=4096).requests * 4096 == 16 * KIB
    assert slots_needed(Disk(depth=1)).requests * 2048 == 10 * KIB


def test_rings_are_as_linux_lays_them_out() -> None:
    assert ring_bytes(256) == 4096 + 576 + 2054
    assert slots_needed(Disk(queues=3)).rings == 12


def test_data_the_device_writes_and_all_else() -> None:
    assert slots_needed(Disk(depth=2, request=9 * KIB)) == SlotDemand(4, 2 * (5 + 2 + 1), 2 * (5 + 1))


def test_no_more_requests_are_in_flight_than_queues_have_entries() -> None:
    assert Disk(depth=1000).in_flight == 256
    assert Disk(depth=1000, queues=2).in_flight == 512


def test_the_pool_is_a_window_in_which_nothing_waits() -> None:
    assert pool_for([slots_needed(Disk(depth=1))], SWIOTLB) == MIN_POOL
    full = SlotDemand(0, 32, 0)  # exactly the smallest window
    assert pool_for([full], SWIOTLB) == MIN_POOL
    assert pool_for([full], DMB) == 2 * MIN_POOL  # the first slot is lost: offset 0 is no address
    assert pool_for([SlotDemand(0, 32, 25)], SWIOTLB) == 2 * MIN_POOL  # three quarters are for what the device writes
    with pytest.raises(UsageError, match="a window has at most 4 GiB"):
        pool_for([SlotDemand(0, MAX_POOL // 2048 + 1, 0)], SWIOTLB)


@pytest.mark.parametrize("wrong", [{"queues": 0}, {"depth": 0}, {"request": 0}, {"queue_size": 3}, {"queue_size": 0}])
def test_what_no_disk_can_be(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        Disk(**wrong)


@given(
    st.builds(Disk, st.integers(1, 4), st.integers(1, 300), st.integers(1, 1 << 20)),
    st.sampled_from([512, 2048, 4096]),
)
def test_more_of_anything_never_takes_less(disk: Disk, slot: int) -> None:
    now = slots_needed(disk, slot=slot).slots
    for more in (
        Disk(disk.queues + 1, disk.depth, disk.request),
        Disk(disk.queues, disk.depth + 1, disk.request),
        Disk(disk.queues, disk.depth, disk.request + 1),
    ):
        assert slots_needed(more, slot=slot).slots >= now
    assert pool_for([slots_needed(disk, slot=slot)], SWIOTLB, slot=slot) >= now * slot
    assert slots_needed(disk, slot=slot).requests * slot >= disk.in_flight * disk.request
