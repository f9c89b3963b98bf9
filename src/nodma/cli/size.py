"""``nodma size``: how large the pool of a set of devices must be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import click
from rich import box
from rich.table import Table

from nodma.cli.console import make_console, print_table
from nodma.cli.json_line import echo_json
from nodma.errors import UsageError
from nodma.hosting.options import Size
from nodma.hosting.slot_config import parse_function
from nodma.pool_sizing import Disk, SlotDemand, pool_for, slots_needed
from nodma.spec.profiles import PROFILES, SWIOTLB
from nodma.units import parse_size, show_size

_TABLE_COLUMNS: Final = 72
"""A terminal with fewer columns gets a list."""
_HEADINGS: Final = ("device", "rings KiB", "in flight KiB", "peak KiB", "slots", "pool")
_KEYS: Final = ("queues", "depth", "request", "queue_size", "count")


@click.command()
@click.argument("devices", nargs=-1, required=True, metavar="DEVICE...")
@click.option("--share", is_flag=True, help="One pool for all; else each has its own.")
@click.option("--at-once", type=click.IntRange(1), metavar="N", help="With --share: devices that are busy at once.")
@click.option("--slot-size", "slot", type=Size(), default="2K", show_default=True, help="Bytes of a bounce slot.")
@click.option("--page", type=Size(), default="4K", show_default=True, help="Bytes of a page of the guest.")
@click.option(
    "--profile", type=click.Choice(list(PROFILES)), default=SWIOTLB.name, show_default=True, help="Wire profile."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def size(
    *, devices: tuple[str, ...], share: bool, at_once: int | None, slot: int, page: int, profile: str, as_json: bool
) -> None:
    """Calculate how much of a pool devices use, and how large it must be so that they never wait.

    A DEVICE is a disk and its load, as in blk,queues=2,depth=64,request=128K,count=3: its queues, how many requests
    are in flight on all of them, the largest request, and how many such disks there are. The defaults are one queue,
    depth 128, 4K, one disk.
    """
    if at_once and not share:
        raise click.UsageError("--at-once is for a pool that is shared: give --share, too.")
    if share and not PROFILES[profile].shareable:
        raise UsageError(f"the profile {profile} cannot share a pool: leave --share out")
    for bytes_ in (slot, page):
        if bytes_ < 1 or bytes_ & (bytes_ - 1):
            raise UsageError(f"--slot-size and --page must be powers of two, got {bytes_} bytes")
    lines = [line for text in devices for line in _lines(text, slot, page)]
    bill = _shared(lines, at_once, profile, slot) if share else _each(lines, profile, slot)
    if as_json:
        echo_json(_record(bill, slot))
    else:
        _show(bill, slot)


@dataclass(frozen=True, slots=True)
class _Line:
    name: str
    need: SlotDemand


@dataclass(frozen=True, slots=True)
class _Bill:
    """What devices take; ``pools`` are the windows: one, or one for each line."""

    lines: list[_Line]
    pools: list[int]


def _lines(text: str, slot: int, page: int) -> list[_Line]:
    """Parse a device, and count its slots. Raises UsageError."""
    raw = parse_function(text)
    kind = raw.pop("device")
    if kind != "blk":
        raise UsageError(f"{kind!r} is not a device whose needs are known; expected blk")
    values = {key.replace("-", "_"): _number(text, key, value) for key, value in raw.items()}
    for key in values:
        if key not in _KEYS:
            raise UsageError(f"{text!r}: a disk has no {key!r}; it has {', '.join(_KEYS)}")
    count = values.pop("count", 1)
    disk = Disk(**values)
    return [_Line(f"blk, {disk.queues} x {disk.queue_size}, depth {disk.depth}, {show_size(disk.request)}",
                  slots_needed(disk, slot=slot, page=page))] * count  # fmt: skip


def _number(text: str, key: str, value: Any) -> int:
    if value is True:
        raise UsageError(f"{text!r}: {key} needs a number")
    try:
        return parse_size(value)
    except UsageError as error:
        raise UsageError(f"{text!r}: {key}: {error}") from None


def _each(lines: list[_Line], profile: str, slot: int) -> _Bill:
    return _Bill(lines, [pool_for([line.need], PROFILES[profile], slot=slot) for line in lines])


def _shared(lines: list[_Line], at_once: int | None, profile: str, slot: int) -> _Bill:
    """All rings, and the requests of those devices that are busy at once: the largest, if not all are."""
    by_size = sorted((line.need for line in lines), key=lambda one: one.requests, reverse=True)
    busy = len(lines) if at_once is None else at_once
    idle = [SlotDemand(one.rings, 0, 0) for one in by_size[busy:]]
    return _Bill(lines, [pool_for([*by_size[:busy], *idle], PROFILES[profile], slot=slot)])


def _record(bill: _Bill, slot: int) -> Mapping[str, Any]:
    return {
        "slot": slot,
        "devices": [
            {
                "device": line.name,
                "rings": line.need.rings * slot,
                "requests": line.need.requests * slot,
                "peak_slots": line.need.slots,
            }
            for line in bill.lines
        ],
        "pools": bill.pools,
        "memory": sum(bill.pools),
    }


def _rows(bill: _Bill, slot: int) -> Iterator[tuple[str, ...]]:
    shared = len(bill.pools) < len(bill.lines)
    for number, line in enumerate(bill.lines):
        parts = [line.need.rings * slot, line.need.requests * slot, line.need.slots * slot]
        pool = "shared" if shared else show_size(bill.pools[number])
        yield (line.name, *(f"{part / 1024:,.0f}" for part in parts), f"{line.need.slots:,}", pool)


def _show(bill: _Bill, slot: int) -> None:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(_HEADINGS[0])
    for name in _HEADINGS[1:]:
        table.add_column(name, justify="right")
    narrow = make_console().width < _TABLE_COLUMNS
    for name, *values in _rows(bill, slot):
        if narrow:
            click.echo(name)
            for heading, value in zip(_HEADINGS[1:], values, strict=True):
                click.echo(f"  {heading:13} {value}")
        table.add_row(name, *values)
    if not narrow:
        print_table(table)
    many = "" if len(bill.pools) == 1 else f" in {len(bill.pools)} pools"
    click.echo(f"memory: {sum(bill.pools) / (1 << 20):,.2f} MiB{many}")
