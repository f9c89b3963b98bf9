"""One pool for two disks beside a pool for each: what a copy from disk to disk costs, and what a flood does.

The driver is the one in Python, in this process.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from rich.table import Table

from benchmarks.figures import Spread, paired_ratio
from benchmarks.plan import Outcome, Plan, Tick
from examples.copy_disks import PIECE, copy
from nodma.driver import BlockDisk, open_slot
from nodma.hosting.process import Served

POOL: Final = "16M"
COPY_DEPTH: Final = 4
FLOOD_DEPTH: Final = 128
PAGE: Final = 4096
SWITCH_SECONDS: Final = 1e-4
"""How long a thread of the driver keeps Python for itself: two disks are driven at once."""

NOTES: Final = (
    "copied: bytes that the driver copied for each byte that went from disk to disk.",
    "flood: reads of 4 KiB at depth 128 on the other disk, by a thread of the same driver: it takes time, but no slots",
    "that the quiet disk has reserved; waits counts how often the quiet disk found none.",
)


def steps(plan: Plan) -> int:
    """How often :func:`run` ticks."""
    return plan.rounds * 5


def run(plan: Plan, tick: Tick) -> Outcome:
    """Measure, in interleaved rounds."""
    target = plan.tmpfs.image.with_name("target.img")
    with target.open("wb") as file:
        for _ in range(plan.tmpfs.image.stat().st_size >> 20):
            file.write(bytes(1 << 20))
    images = (plan.tmpfs.image, target)
    copies: dict[str, list[dict[str, float]]] = {"one pool": [], "a pool each": []}
    latencies: dict[str, list[dict[str, float]]] = {"alone": [], "beside a flood, a pool each": []}
    latencies["beside a flood, one pool"] = []
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        for _ in range(plan.rounds):
            for name, found in copies.items():
                tick(f"copying from disk to disk, {name}")
                with _disks(plan.work, images, shared=name == "one pool") as disks:
                    found.append(_copying(*disks, without=name == "one pool"))
            for name, found in latencies.items():
                tick(f"a quiet disk {name}")
                with _disks(plan.work, images, shared="one pool" in name) as disks:
                    found.append(_quiet(*disks, flooded=name != "alone", seconds=plan.seconds))
    finally:
        sys.setswitchinterval(before)
    tables = [_copy_table(copies), _latency_table(latencies)]
    return Outcome({"copies": copies, "latencies": latencies}, tables, list(NOTES))


@contextmanager
def _disks(work: Path, images: Sequence[Path], *, shared: bool) -> Iterator[list[BlockDisk]]:
    """Two disks in one slot, in one pool of 16 MiB or each in one of its own."""
    sockets = [work / f"sharing{number}.sock" for number in range(len(images))]
    functions = [f"blk,image={image},socket={socket}" for image, socket in zip(images, sockets, strict=True)]
    with Served("--slot", "--pool", POOL, *["--share"] * shared, *functions) as process:
        with open_slot(sockets) as slot:
            disks = [BlockDisk(slot.bus(number), depth=FLOOD_DEPTH) for number in slot.functions]
            yield disks
            for disk in reversed(disks):
                disk.close()
        process.stop()


def _copying(source: BlockDisk, target: BlockDisk, *, without: bool) -> dict[str, float]:
    """Copy a disk to another, without copies in the driver or through its memory."""
    begin, cpu = time.perf_counter(), time.process_time()
    moved = (copy if without else _copy_through_memory)(source, target)
    spent, used = time.perf_counter() - begin, time.process_time() - cpu
    copied = sum(disk.statistics.bytes_in + disk.statistics.bytes_out for disk in (source, target))
    return {"rate": moved / spent, "copied": copied / moved, "cpu_us_mib": used * 1e6 / (moved >> 20)}


def _copy_through_memory(source: BlockDisk, target: BlockDisk) -> int:
    """The same in pieces of the same size, as many at once, through buffers of the driver's."""
    piece = min(PIECE, source.max_request, target.max_request)
    buffers = [bytearray(piece) for _ in range(COPY_DEPTH)]
    reading: dict[Any, tuple[int, memoryview]] = {}
    writing: dict[Any, memoryview] = {}
    at = 0
    while at < source.size or reading or writing:
        while at < source.size and buffers:
            buffer = buffers.pop()
            view = memoryview(buffer)[: min(piece, source.size - at)]
            reading[source.submit_read(at, view)] = (at, view)
            at += len(view)
        source.kick()
        for ticket in source.wait() if not writing else source.reap():
            where, view = reading.pop(ticket)
            writing[target.submit_write(where, view)] = view
        done = target.wait() if writing else []
        buffers += [writing.pop(ticket).obj for ticket in done]  # type: ignore[misc]
    target.flush()
    return at


def _quiet(flooded_disk: BlockDisk, quiet: BlockDisk, *, flooded: bool, seconds: float) -> dict[str, float]:
    """Read 4 KiB at a time from one disk, while the other is flooded, or is not."""
    with _flood(flooded_disk) if flooded else _nothing():
        took = []
        end = time.perf_counter() + max(seconds, 0.5)
        while (begin := time.perf_counter()) < end:
            quiet.pread(PAGE, 0)
            took.append(time.perf_counter() - begin)
    took.sort()
    return {
        "p50_us": took[len(took) // 2] * 1e6,
        "p99_us": took[len(took) * 99 // 100] * 1e6,
        "max_us": took[-1] * 1e6,
        "waits": quiet.statistics.full,
        "flood_rate": flooded_disk.statistics.maps / max(seconds, 0.5),
    }


@contextmanager
def _flood(disk: BlockDisk) -> Iterator[None]:
    """Keep as many reads in flight as the disk takes, in a thread."""
    stop = threading.Event()

    def drown() -> None:
        buffers = [bytearray(PAGE) for _ in range(FLOOD_DEPTH)]
        for buffer in buffers:
            disk.submit_read(0, buffer)
        while disk.in_flight:
            for pending in disk.wait():
                if not stop.is_set():
                    disk.submit_read(0, pending.destination)  # type: ignore[arg-type]

    thread = threading.Thread(target=drown)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _spread(found: list[dict[str, float]], key: str, scale: float = 1.0) -> Spread:
    return Spread.of([one[key] * scale for one in found])


def _copy_table(copies: dict[str, list[dict[str, float]]]) -> Table:
    table = Table(title="From disk to disk, depth 4", title_justify="left")
    table.add_column("pools")
    for name in ("MB/s", "over a pool each", "copied", "driver CPU us/MiB"):
        table.add_column(name, justify="right")
    separate = [one["rate"] for one in copies["a pool each"]]
    for name, found in copies.items():
        ratio = paired_ratio([one["rate"] for one in found], separate).shown(".2f")
        cells: list[tuple[str, float, str]] = [("rate", 1e-6, ",.0f"), ("copied", 1, ".1f"), ("cpu_us_mib", 1, ",.0f")]
        shown = [_spread(found, key, scale).shown(form) for key, scale, form in cells]
        table.add_row(name, shown[0], ratio, *shown[1:])
    return table


def _latency_table(latencies: dict[str, list[dict[str, float]]]) -> Table:
    table = Table(title="4 KiB reads of a quiet disk, depth 1", title_justify="left")
    table.add_column("the quiet disk")
    for name in ("p50 us", "p99 us", "most us", "waits"):
        table.add_column(name, justify="right")
    for name, found in latencies.items():
        table.add_row(name, *(_spread(found, key).shown() for key in ("p50_us", "p99_us", "max_us", "waits")))
    return table
