"""Both builds of the ring, side by side: interpreted and compiled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

from rich.table import Table

from benchmarks import path, ring
from benchmarks.figures import Spread, paired_ratio
from benchmarks.plan import Outcome, Plan, Tick
from nodma.errors import NodmaError, UsageError
from nodma.units import show_size

DEPTH: Final = 32
SIZES: Final = (4 << 10, 1 << 20)
BUILDS: Final = ("interpreted", "compiled")
KINDS: Final[Mapping[str, Callable[..., dict[str, float | str]]]] = {
    "ring": ring.measure,
    "ring, indirect": partial(ring.measure, indirect=True),
    "path": path.measure,
}
NOTES: Final = (
    "ring: the device's end in one process, a replaying front end, polled; CPU is all of it.",
    "ring, indirect: the same through indirect tables, as Linux makes requests.",
    "path: device process, socket, reference driver in Python, interrupts; CPU is the driver's.",
)

Key = tuple[str, int]
Runs = dict[tuple[Key, str], list[dict[str, float]]]


def work(arguments: list[str]) -> None:
    """Measure once, in a process of its own, and print the result."""
    kind, size, seconds, image = arguments
    print(json.dumps(KINDS[kind](Path(image), DEPTH, int(size), float(seconds))))


def _keys(plan: Plan) -> list[Key]:
    return [(kind, size) for kind in KINDS for size in SIZES if plan.match in kind]


def steps(plan: Plan) -> int:
    """How often :func:`run` ticks."""
    return plan.rounds * len(_keys(plan)) * len(BUILDS)


def run(plan: Plan, tick: Tick) -> Outcome:
    """Measure. Raises UsageError if the ring was not compiled."""
    runs: Runs = defaultdict(list)
    for _ in range(plan.rounds):
        for key in _keys(plan):
            for build in BUILDS:
                tick(f"{key[0]}, {show_size(key[1])}, {build}")
                runs[key, build].append(_once(build, key, plan))
    record = [
        {"what": kind, "depth": DEPTH, "size": size, "ring": build, "runs": found}
        for ((kind, size), build), found in runs.items()
    ]
    return Outcome(record, [_table(plan, runs)], list(NOTES))


def _once(build: str, key: Key, plan: Plan) -> dict[str, float]:
    kind, size = key
    environment = {**os.environ, "NODMA_PURE": "1" if build == "interpreted" else "0"}
    arguments = [kind, str(size), str(plan.seconds), str(plan.disk.image)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--work", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise NodmaError(f"{kind} with {show_size(size)} failed:\n{done.stderr}")
    result = json.loads(done.stdout)
    if result.pop("ring") != build:
        raise UsageError("the compiled ring was not built: install a C compiler, then make setup")
    return dict(result)


def _table(plan: Plan, runs: Runs) -> Table:
    title = f"Both builds of the ring, reads at depth {DEPTH}: medians (least-most) of {plan.rounds} rounds"
    table = Table(title=title, title_justify="left")
    table.add_column("what")
    table.add_column("size", justify="right")
    for build in BUILDS:
        for name in (f"{build}\nrequests/s", "\nMB/s", "\nCPU us"):
            table.add_column(name, justify="right")
    table.add_column("compiled over\ninterpreted", justify="right")
    for key in _keys(plan):
        cells = [key[0], show_size(key[1])]
        rates = {build: [found["rate"] for found in runs[key, build]] for build in BUILDS}
        for build in BUILDS:
            spread = Spread.of(rates[build])
            cpu = median(found["cpu_us"] for found in runs[key, build])
            cells += [spread.shown(), f"{spread.middle * key[1] / 1e6:,.0f}", f"{cpu:.2f}"]
        table.add_row(*cells, paired_ratio(rates["compiled"], rates["interpreted"]).shown(".2f"))
    return table
