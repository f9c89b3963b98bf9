"""What is made of measurements."""

from __future__ import annotations

import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.figures import Spread, bucket_begin, paired_ratio, percentile
from benchmarks.native import BUCKETS


def histogram(values: list[int]) -> list[int]:
    """Counts as native.h makes them."""
    counts = [0] * BUCKETS
    for value in values:
        bucket = next(index for index in range(BUCKETS) if bucket_begin(index + 1) > value)
        counts[bucket] += 1
    return counts


def test_buckets_follow_each_other_without_gaps() -> None:
    begins = [bucket_begin(bucket) for bucket in range(BUCKETS)]
    assert begins[:65] == list(range(65))
    assert begins == sorted(set(begins))
    assert begins[-1] < 1 << 64


@given(st.lists(st.integers(0, 1 << 40), min_size=1, max_size=200), st.sampled_from([0.5, 0.99, 1.0]))
def test_a_percentile_is_right_to_a_bucket(values: list[int], share: float) -> None:
    exact = sorted(values)[max(0, -int(-share * len(values) // 1) - 1)]
    assert percentile(histogram(values), share) == pytest.approx(exact, rel=1 / 32, abs=1)


def test_of_nothing_there_is_no_percentile() -> None:
    assert percentile([0] * BUCKETS, 0.5) == 0


def test_a_ratio_is_that_of_runs_made_together() -> None:
    assert paired_ratio([10, 40, 30], [5, 10, 10]) == Spread(3, 2, 4)


def test_a_spread_is_shown_with_its_ends() -> None:
    assert Spread.of([3.0, 1.0, 2000.0]).shown() == "3 (1-2,000)"


def test_results_have_room_for_every_latency() -> None:
    from benchmarks.native import Result

    assert len(Result().latencies) == BUCKETS
    assert ctypes.sizeof(Result) == 6 * 8 + 8 * BUCKETS
