"""The register path: 4-byte REGION_READ over the socket, one at a time, client and server on one core."""

from __future__ import annotations

import ctypes
import os
import socket
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Final

from rich.table import Table

from benchmarks import native
from benchmarks.figures import Measured, Spread, paired_ratio
from benchmarks.front import measured
from benchmarks.peers import INTERPRETED, OURS, cpu_seconds, pure_python
from benchmarks.plan import Outcome, Plan, Tick, Verdict
from nodma.hosting.process import DeviceProcess
from nodma.spec.vfio_user import TYPE_COMMAND, Cmd, Header, Region, RegionAccess
from nodma.vfio_user.client import Client

FLOOR: Final = "echo in C"
TARGETS: Final = {INTERPRETED.name: 75_000, OURS.name: 90_000}
"""Requests a second."""
NOTES: Final = (
    "register: REGION_READ of 4 bytes of configuration space, one at a time; client in C, both pinned to one core.",
    "echo in C: a server that receives and sends messages of the same sizes, and does nothing else. CPU: the server's.",
)

_WIDTH: Final = 4
_ACCESS: Final = RegionAccess.codec.pack(0, Region.CONFIG, _WIDTH)
_REPLY_BYTES: Final = Header.size + RegionAccess.size + _WIDTH
_MESSAGE: Final = Header.codec.pack(1, Cmd.REGION_READ, Header.size + len(_ACCESS), TYPE_COMMAND, 0) + _ACCESS
_SHORTEST: Final = 1.0


def steps(plan: Plan) -> int:
    """How often :func:`run` ticks."""
    return 3 * plan.rounds


def run(plan: Plan, tick: Tick) -> Outcome:
    """Measure. Raises NodmaError if the server fails."""
    seconds = max(_SHORTEST, plan.seconds)
    runs: dict[str, list[Measured]] = defaultdict(list)
    for _ in range(plan.rounds):
        for name in (OURS.name, INTERPRETED.name, FLOOR):
            tick(f"register path: {name}")
            with one_core() as core:
                runs[name].append(_floor(seconds) if name == FLOOR else _once(plan, core, name, seconds))
    table = Table(title="Register path: medians (least-most)", title_justify="left")
    for title in ("by", "requests/s", "over the floor", "p50 us", "p99 us", "server CPU us"):
        table.add_column(title, justify="left" if title == "by" else "right")
    for name, found in runs.items():
        rates = [one.rate for one in found]
        ratio = paired_ratio(rates, [one.rate for one in runs[FLOOR]])
        table.add_row(
            name,
            Spread.of(rates).shown(),
            ratio.shown(".2f"),
            *(f"{median(getattr(one, figure) for one in found):.2f}" for figure in ("p50_us", "p99_us")),
            f"{median(one.device_cpu_us for one in found):.2f}",
        )
    verdicts = [
        Verdict(f"register reads a second, {name}", Spread.of([one.rate for one in runs[name]]), bound, form=",.0f")
        for name, bound in TARGETS.items()
    ]
    record = {name: [{"rate": one.rate, "cpu_us": one.device_cpu_us} for one in found] for name, found in runs.items()}
    return Outcome(record, [table], list(NOTES), verdicts)


@contextmanager
def one_core() -> Iterator[int]:
    """Keep this thread, and the processes that it starts, on one core."""
    before = os.sched_getaffinity(0)
    core = max(before)
    os.sched_setaffinity(0, {core})
    try:
        yield core
    finally:
        os.sched_setaffinity(0, before)


def _once(plan: Plan, core: int, name: str, seconds: float) -> Measured:
    path = plan.work / "register.sock"
    with pure_python(name == INTERPRETED.name), DeviceProcess(plan.tmpfs.image, path) as process:
        for task in Path(f"/proc/{process.pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), {core})
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            with Client(sock):
                sock.setblocking(True)
                cpu = cpu_seconds(process.pid)
                found = _ping_pong(sock, seconds)
                found.device_cpu_us = (cpu_seconds(process.pid) - cpu) / found.done * 1e6
        process.stop()
    return found


def _floor(seconds: float) -> Measured:
    client, server = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    library = native.library()
    pid = os.fork()
    if not pid:
        client.close()
        library.echo(server.fileno(), len(_MESSAGE), _REPLY_BYTES)
        os._exit(0)
    server.close()
    try:
        with client:
            found = _ping_pong(client, seconds)
            found.device_cpu_us = cpu_seconds(pid) / found.done * 1e6
    finally:
        os.waitpid(pid, 0)
    return found


def _ping_pong(sock: socket.socket, seconds: float) -> Measured:
    result = native.Result()
    arguments = (sock.fileno(), _MESSAGE, len(_MESSAGE), _REPLY_BYTES, ctypes.c_int64(int(seconds * 1e9)))
    native.check(native.library().ping_pong(*arguments, ctypes.byref(result)), "the register path failed")
    return measured(result)
