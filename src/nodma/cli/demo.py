"""``nodma demo``: a disk at work that never touches guest memory, on one screen."""

from __future__ import annotations

import dataclasses
import shlex
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from nodma.cli.console import make_console, print_table
from nodma.cli.json_line import echo_json
from nodma.demo.story import Findings, run_demo
from nodma.hosting.options import PoolSize
from nodma.units import show_size

_KILLED = 128
"""What a shell adds to the number of the signal that ended a command."""
_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


@click.command()
@click.option("--files", type=click.IntRange(10, 100_000), default=1200, show_default=True, help="Files on the disk.")
@click.option("--requests", type=click.IntRange(1_000), default=100_000, show_default=True, help="Random reads.")
@click.option("--pool", type=PoolSize(), default="16M", show_default=True, help="The window's size.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def demo(*, files: int, requests: int, pool: int, as_json: bool) -> None:
    """Serve an ext4 disk from one process, use it from another, and show who holds which memory.

    The exit code is 0 only if every check passes. No files are left.
    """
    for number in _ENDING:
        signal.signal(number, _end)
    console = make_console()
    with tempfile.TemporaryDirectory(prefix="nodma-demo-") as directory, _bar(console, as_json) as bar:
        try:
            found = run_demo(Path(directory), files=files, pool=pool, requests=requests, progress=_Steps(bar))
        finally:
            _ignore_signals()
    if as_json:
        echo_json(dataclasses.asdict(found))
    else:
        _show(console, found)


def _end(number: int, _: FrameType | None) -> NoReturn:
    _ignore_signals()
    sys.exit(_KILLED + number)


def _ignore_signals() -> None:
    """Ignore what ends the demo, from now on: in the middle of cleaning up it would leave files behind."""
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)


def _bar(console: Console, hidden: bool) -> Progress:
    return Progress(
        TextColumn("{task.description:<48}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=hidden or not console.is_terminal,
    )


class _Steps:
    """One line of progress that becomes the next step's when a step is done."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task: TaskID | None = None
        self._what = ""

    def __call__(self, what: str, done: int, total: int) -> None:
        if what != self._what:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._what, self._task = what, self._bar.add_task(what, total=total)
        assert self._task is not None
        self._bar.update(self._task, completed=done)


def _show(console: Console, found: Findings) -> None:
    """Put it all on one screen."""

    def rows(title: str, *pairs: tuple[str, str]) -> None:
        console.print(f"\n[bold]{title}[/bold]")
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for left, right in pairs:
            table.add_row(f"  {left}", right)
        print_table(table)

    window = [mapped for mapped in found.maps if mapped.file == found.window]
    console.print(
        f"[bold]nodma demo[/bold]: {found.files} files ({found.tree_bytes / 1e6:.1f} MB) on an ext4 disk of"
        f" {found.image_bytes >> 20} MiB, served by one process, driven by another, ring {found.ring}."
    )
    rows("The device as the driver sees it", *found.inspected)
    rows(
        "Who holds which memory (from /proc/PID of the device process)",
        (
            "mapped and shared",
            f"{window[0].name} {window[0].permissions}, {show_size(sum(mapped.size for mapped in window))}: the window",
        ),
        ("open", ", ".join(_descriptors(found))),
        ("offered by DMA_MAP", _offered(found)),
        ("private memory", f"{found.resident / 2**20:.1f} MiB resident beside the window"),
        ("searched", f"{found.searched / 1e6:.1f} MB, all that it has mapped; {found.unread} bytes cannot be read"),
        *([("not inspected", f"{found.unanswered} other processes, which hang")] if found.unanswered else []),
    )
    pool, device = found.pool, found.device["device"]
    rows(
        "What went through the pool",
        ("to the device", f"{pool['bytes_in'] / 1e6:.1f} MB, {found.files_written} files"),
        ("back", f"{pool['bytes_out'] / 1e6:.1f} MB"),
        (
            "slots",
            f"peak {pool['peak']} of {pool['slots']} (2 KiB each), {pool['maps']} mappings, {pool['full']} waits",
        ),
        ("requests", f"{found.device['requests']}, including {device['reads']} reads and {device['writes']} writes"),
        (
            "speed",
            f"{found.requests_rate:,.0f} requests a second (4 KiB, depth 32),"
            f" read {found.read_rate / 1e6:,.0f} MB/s, write {found.write_rate / 1e6:,.0f} MB/s",
        ),
        ("notifications", f"{found.device['notifications']}, and {found.device['interrupts']} interrupts"),
        ("start to ready", f"{found.startup:.2f} s"),
    )
    rows("What held", *(("[green]ok[/green]", check) for check in found.checks))
    console.print("\n[bold]The same with QEMU 10.1 or newer[/bold] (nodma serve blk -s PATH --image FILE prints it)")
    console.print(f"  qemu-system-x86_64 ... {shlex.join(found.qemu)}", soft_wrap=True)


def _descriptors(found: Findings) -> list[str]:
    """Return what each open descriptor is."""
    names = []
    for item in found.descriptors:
        kind = item.target.split(":")[0]
        if item.file == found.window:
            names.append("the window")
        elif item.target.endswith("disk.img"):
            names.append("the image")
        elif kind == "anon_inode":
            names.append(item.target.split(":")[1].strip("[]"))
        else:
            names.append(kind if kind in ("socket", "pipe") else item.target)
    return [f"{names.count(name)} x {name}" if names.count(name) > 1 else name for name in dict.fromkeys(names)]


def _offered(found: Findings) -> str:
    closed = found.device["dma_descriptors_closed"]
    return (
        f"{show_size(found.ram_bytes)} of the driver's memory, by descriptor: {closed} closed at once, 0 kept,"
        " 0 bytes mapped"
    )
