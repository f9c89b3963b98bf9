"""What is made of measurements: percentiles, medians with their spread, ratios of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.native import SUB_BITS


@dataclass(slots=True)
class Measured:
    """One run: requests a second, and what one took. CPU is microseconds a request; ``kicks`` and ``sleeps`` are
    notifications by the driver and its waits for an interrupt, a request. ``waited`` is the share of the run that the
    device's threads were ready and had no core: much of it, and the run tells of the machine's other work.
    """

    rate: float
    done: int
    p50_us: float = 0.0
    p99_us: float = 0.0
    front_cpu_us: float = 0.0
    device_cpu_us: float = 0.0
    kicks: float = 0.0
    sleeps: float = 0.0
    waited: float = 0.0
    beside_window: int = 0


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of several runs, the least and the most."""

    middle: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(median(values), min(values), max(values))

    def shown(self, form: str = ",.0f") -> str:
        """As in ``3 (2-4)``."""
        return f"{self.middle:{form}} ({self.least:{form}}-{self.most:{form}})"


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """The ratios of runs that were made one after the other: what slows the machine for a while slows both."""
    return Spread.of([one / other for one, other in zip(ours, theirs, strict=True)])


def bucket_begin(bucket: int) -> int:
    """The least value that a bucket of native.h counts."""
    if bucket < 2 << SUB_BITS:
        return bucket
    shift = (bucket >> SUB_BITS) - 1
    return ((bucket & (1 << SUB_BITS) - 1) + (1 << SUB_BITS)) << shift


def percentile(buckets: Sequence[int], share: float) -> float:
    """The value below which ``share`` of those counted lie, in the middle of its bucket; 0 if none was counted."""
    wanted = share * sum(buckets)
    seen = 0
    for bucket, count in enumerate(buckets):
        seen += count
        if count and seen >= wanted:
            return (bucket_begin(bucket) + bucket_begin(bucket + 1)) / 2
    return 0.0
