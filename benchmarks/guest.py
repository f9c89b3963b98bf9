"""In a guest: fio on the same kernel against our disk, QEMU's own, and qemu-storage-daemon's."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from rich.table import Table

from benchmarks.figures import Spread, paired_ratio
from benchmarks.peers import DAEMON_BEST, cpu_seconds
from benchmarks.plan import Outcome, Plan, Tick, Verdict
from nodma.errors import GuestError
from nodma.guest import Job, Kit, Machine, Shape
from nodma.guest import Outcome as Ended
from nodma.guest.accelerator import choose
from nodma.hosting.attach import qemu_device
from nodma.hosting.process import DeviceProcess

KERNEL: Final = "6.12"
KINDS: Final = {"randread": "read", "randwrite": "write"}
ROUNDS: Final = 2
"""At most: a guest takes a quarter of a minute."""
TARGET: Final = 0.9
NOTES: Final = (
    "guest: fio, 4K at random, libaio, depth 32, one CPU, kernel {kernel}, accelerator {accelerator}.",
    "CPU: host microseconds a request, of QEMU and the device process, fio's start included.",
    "kicks: notifications a request: calls of vp_notify(), counted by a probe in the guest in a run of its own.",
)

_SECONDS: Final = 3
_SECONDS_QUICK: Final = 2
_BOOT_SECONDS: Final = 120.0
_SCRIPT: Final = (Path(__file__).parent / "guest.sh").read_text()
_PERCENTILES: Final = {"p50_us": "50.000000", "p99_us": "99.000000"}

Attached = tuple[tuple[str, ...], int | None]
"""QEMU's arguments, and the process that serves the disk if it is not QEMU's own."""


@dataclass(frozen=True, slots=True)
class Disk:
    """A way to give a guest a disk: what is started for it, and the drivers that it takes."""

    name: str
    drivers: tuple[str, ...]
    attach: Callable[[Path, Path], Iterator[Attached]]


def _ours(image: Path, work: Path) -> Iterator[Attached]:
    path = work / "guest.sock"
    with DeviceProcess(image, path) as device:
        yield ("-device", qemu_device(str(path))), device.pid
        device.stop()


def _own(image: Path, work: Path) -> Iterator[Attached]:
    del work
    disk = f"driver=file,node-name=disk,filename={image},aio=io_uring,discard=unmap"
    yield ("-object", "iothread,id=io", "-blockdev", disk, "-device", "virtio-blk-pci,drive=disk,iothread=io"), None


def _daemon(image: Path, work: Path) -> Iterator[Attached]:
    path = work / "guest.sock"
    with DAEMON_BEST.running(image, path) as pid:
        yield ("-chardev", f"socket,id=disk,path={path}", "-device", "vhost-user-blk-pci,chardev=disk"), pid


OURS: Final = Disk("nodma", ("nodma", "virtio_blk"), _ours)
OWN: Final = Disk("QEMU's own, io_uring + iothread", ("virtio_blk",), _own)
DAEMON: Final = Disk("daemon, best", ("virtio_blk",), _daemon)
DISKS: Final = (OURS, OWN, DAEMON)

Runs = dict[tuple[str, str], list[dict[str, float]]]


def _rounds(plan: Plan) -> int:
    return min(ROUNDS, plan.rounds)


def steps(plan: Plan) -> int:
    """How often :func:`run` ticks."""
    return _rounds(plan) * len(DISKS)


def run(plan: Plan, tick: Tick) -> Outcome:
    """Boot and measure. Raises GuestError if a guest fails, UsageError if there can be none."""
    kit = Kit.open()
    accelerator = choose(kit.tools, kit.kernel(KERNEL))
    runs: Runs = defaultdict(list)
    for _ in range(_rounds(plan)):
        for disk in DISKS:
            tick(f"guest: {disk.name}")
            for kind, one in _boot(plan, kit, disk, accelerator).items():
                runs[kind, disk.name].append(one)
    table = Table(title="In a guest: medians (least-most)", title_justify="left")
    for title in ("work", "by", "requests/s", "ours over it", "p50 us", "p99 us", "host CPU us", "kicks"):
        table.add_column(title, justify="left" if title in ("work", "by") else "right")
    for (kind, name), found in sorted(runs.items(), key=lambda item: item[0][0]):
        table.add_row(*_row(runs, kind, name, found), end_section=name == DAEMON.name)
    notes = [note.format(kernel=kit.kernel(KERNEL).release, accelerator=accelerator) for note in NOTES]
    verdicts = [
        Verdict(f"guest, fio 4K {kind}, depth 32, over QEMU's own", _ratio(runs, kind, OWN.name), TARGET)
        for kind in KINDS
    ]
    record = [{"work": kind, "by": name, "runs": found} for (kind, name), found in runs.items()]
    return Outcome(record, [table], notes, verdicts)


def _ratio(runs: Runs, kind: str, name: str) -> Spread:
    return paired_ratio(*([one["rate"] for one in runs[kind, which]] for which in (OURS.name, name)))


def _row(runs: Runs, kind: str, name: str, found: list[dict[str, float]]) -> list[str]:
    ratio = "" if name == OURS.name else _ratio(runs, kind, name).shown(".2f")
    cells = [kind if name == OURS.name else "", name, Spread.of([one["rate"] for one in found]).shown(), ratio]
    cells += [f"{median(one[figure] for one in found):,.0f}" for figure in ("p50_us", "p99_us")]
    return [*cells, *(f"{median(one[figure] for one in found):.2f}" for figure in ("cpu_us", "kicks"))]


def _boot(plan: Plan, kit: Kit, disk: Disk, accelerator: str) -> dict[str, dict[str, float]]:
    """Boot a guest with a disk; give what was measured, by fio's name of the work."""
    seconds = _SECONDS_QUICK if plan.quick else _SECONDS
    job = Job(_SCRIPT, drivers=disk.drivers, programs=["fio"], files={"seconds": f"{seconds}\n".encode()})
    with contextmanager(disk.attach)(plan.disk.image, plan.work) as (words, pid):
        shape = Shape(shared=True, accelerator=accelerator, arguments=words)
        with Machine(kit.tools, kit.kernel(KERNEL), job, shape=shape, directory=plan.work) as machine:
            pids = [machine.pid, *([pid] if pid else [])]
            cpu = {kind: _cpu_between(machine, kind, pids, seconds) for kind in KINDS}
            ended = machine.finish(_BOOT_SECONDS)
    if ended.status:
        raise GuestError(f"the script in the guest with {disk.name} failed; {machine.console.tail()}")
    return {kind: figures(ended, kind) | {"cpu_us": cpu[kind] / total(ended, kind) * 1e6} for kind in KINDS}


def _cpu_between(machine: Machine, kind: str, pids: list[int], seconds: float) -> float:
    machine.console.expect(rf"^BEGIN {kind}", _BOOT_SECONDS)
    before = sum(cpu_seconds(pid) for pid in pids)
    machine.console.expect(rf"^END {kind}", seconds + _BOOT_SECONDS)
    return sum(cpu_seconds(pid) for pid in pids) - before


def figures(ended: Ended, kind: str) -> dict[str, float]:
    """Read fio's report, and the count of notifications."""
    done = _job(ended, f"{kind}.json", kind)
    found = {name: done["clat_ns"]["percentile"][share] / 1e3 for name, share in _PERCENTILES.items()}
    counted = _job(ended, f"counted-{kind}.json", kind)["total_ios"]
    return {"rate": done["iops"], "kicks": int(ended.file(f"kicks-{kind}")) / max(1, counted)} | found


def total(ended: Ended, kind: str) -> int:
    """How many requests fio made."""
    return max(1, int(_job(ended, f"{kind}.json", kind)["total_ios"]))


def _job(ended: Ended, name: str, kind: str) -> dict[str, Any]:
    job: dict[str, Any] = json.loads(ended.file(name))["jobs"][0][KINDS[kind]]
    return job
