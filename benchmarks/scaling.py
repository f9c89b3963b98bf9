"""What a request costs as queues and pools grow, and what the process takes beside its window."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, replace
from statistics import median
from typing import Final

from rich.table import Table

from benchmarks.figures import Measured, Spread
from benchmarks.front import Work
from benchmarks.peers import OURS
from benchmarks.plan import Outcome, Plan, Tick, Verdict
from nodma.units import show_size

QUEUES: Final = (1, 2, 4, 8, 16)
POOLS: Final = (1 << 20, 16 << 20, 256 << 20, 1 << 30)
IN_FLIGHT: Final = 32
"""Requests in flight, in all queues together."""
MEMORY_LIMIT: Final = 60 << 20
"""Bytes beside the window."""
NOTES: Final = (f"scaling: 4K reads, notified, {IN_FLIGHT} in flight in all queues together; CPU is the device's.",)

Shape = tuple[int, int]


def _shapes() -> list[Shape]:
    """Queues and pool of each line: first the queues grow, then the pool does."""
    return [(queues, 64 << 20) for queues in QUEUES] + [(1, pool) for pool in POOLS]


def steps(plan: Plan) -> int:
    """How often :func:`run` ticks."""
    return plan.rounds * len(_shapes())


def run(plan: Plan, tick: Tick) -> Outcome:
    """Measure. Raises NodmaError if a device does not work."""
    runs: dict[Shape, list[Measured]] = defaultdict(list)
    for _ in range(plan.rounds):
        for queues, pool in _shapes():
            tick(f"{queues} queues, a pool of {show_size(pool)}")
            work = Work(depth=IN_FLIGHT // queues, queues=queues)
            peer = replace(OURS, pool=pool)
            runs[queues, pool].append(peer.measure(plan.tmpfs.image, plan.work, work, plan.seconds))
    table = Table(title="Scaling: medians (least-most)", title_justify="left")
    for title in ("queues", "pool", "requests/s", "device CPU us", "kicks", "MiB beside the window"):
        table.add_column(title, justify="right")
    for (queues, pool), found in runs.items():
        table.add_row(
            str(queues),
            show_size(pool),
            Spread.of([one.rate for one in found]).shown(),
            Spread.of([one.device_cpu_us for one in found]).shown(".2f"),
            f"{median(one.kicks for one in found):.3f}",
            f"{max(one.beside_window for one in found) / (1 << 20):.1f}",
        )
    most = [max(one.beside_window for one in found) / (1 << 20) for found in runs.values()]
    memory = Verdict("MiB beside the window", Spread.of(most), MEMORY_LIMIT >> 20, at_most=True, form=".1f")
    record = [
        {"queues": queues, "pool": pool, "runs": [asdict(one) for one in found]}
        for (queues, pool), found in runs.items()
    ]
    return Outcome(record, [table], list(NOTES), [memory])
