"""Run the benchmarks: interleaved rounds, medians with their spread, ratios, targets; a table and JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import builds, chart, compare, guest, register, scaling, sharing
from benchmarks.plan import Outcome, Plan, Tick, Verdict, stores
from nodma import __version__
from nodma.errors import NodmaError
from nodma.guest.kit import set_up

TABLE_WIDTH: Final = 180
DISK: Final = Path("/var/tmp")
"""Where a file system on a disk is to be expected."""


class Part(NamedTuple):
    """A part of the benchmarks: how often it ticks, and what it does."""

    steps: Callable[[Plan], int]
    run: Callable[[Plan, Tick], Outcome]


PARTS: Final = {
    "compare": Part(compare.steps, compare.run),
    "register": Part(register.steps, register.run),
    "scaling": Part(scaling.steps, scaling.run),
    "builds": Part(builds.steps, builds.run),
    "guest": Part(guest.steps, guest.run),
    "sharing": Part(sharing.steps, sharing.run),
}
QUICK: Final = ("compare", "register")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the targets only, in two rounds: under two minutes")
    parser.add_argument("--rounds", type=int, help="interleaved runs of each (default 3; quick 2)")
    parser.add_argument("--seconds", type=float, help="seconds a run (default 0.4; quick 0.25)")
    parser.add_argument("--only", choices=PARTS, action="append", help="this part only; may be repeated")
    parser.add_argument("--guest", action="store_true", help="with --quick: the guest as well")
    parser.add_argument("--chart", type=Path, metavar="FILE.svg", help="draw the comparison, as docs/performance.svg")
    parser.add_argument("--match", default="", metavar="TEXT", help='lines with TEXT in their name, as "4K read"')
    parser.add_argument("--image-dir", type=Path, default=DISK, help="where to put the image (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", default=Path("benchmarks/results/latest.json"))
    return parser.parse_args()


def main() -> None:
    """Run what was asked for."""
    asked = arguments()
    wide = Console()
    console = wide if wide.width >= TABLE_WIDTH else Console(width=TABLE_WIDTH)  # a number cut short is no number
    names = asked.only or ([*QUICK, *(["guest"] if asked.guest else [])] if asked.quick else PARTS)
    if asked.chart:
        chart.check()
    record: dict[str, Any] = {"about": about()}
    with stores(asked.image_dir) as (disk, tmpfs, work):
        rounds, seconds = asked.rounds or (2 if asked.quick else 3), asked.seconds or (0.25 if asked.quick else 0.4)
        plan = Plan(rounds, seconds, asked.quick, asked.match, disk, tmpfs, work)
        outcomes = measure(console, plan, {name: PARTS[name] for name in names})
    for name, outcome in outcomes.items():
        for table in outcome.tables:
            console.print(table)
        for note in outcome.notes:
            console.print(note, highlight=False)
        record[name] = outcome.record
    verdicts = [verdict for outcome in outcomes.values() for verdict in outcome.verdicts]
    if verdicts:
        console.print(judged(verdicts))
    record["targets"] = [
        {"target": verdict.text, "bound": verdict.bound, "median": verdict.measured.middle, "met": verdict.met}
        for verdict in verdicts
    ]
    record["about"]["load_at_end"] = os.getloadavg()[0]
    if asked.chart:
        chart.draw(record, asked.chart)
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    asked.json.write_text(json.dumps(record, indent=1) + "\n")
    console.print(f"written to {asked.json}")


def measure(console: Console, plan: Plan, parts: dict[str, Part]) -> dict[str, Outcome]:
    """Run the parts, with a progress bar on a terminal."""
    hidden = not console.is_terminal
    with Progress(console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task("fetching the guest kit", total=None)
        set_up(extras=["peers"], progress=lambda what, _: progress.update(task, description=what))
        progress.update(task, total=sum(part.steps(plan) for part in parts.values()), completed=0)

        def tick(what: str) -> None:
            progress.update(task, description=what, advance=1)

        return {name: part.run(plan, tick) for name, part in parts.items()}


def judged(verdicts: list[Verdict]) -> Table:
    """Return the table of the targets."""
    table = Table(title="Targets", title_justify="left")
    table.add_column("target")
    for name in ("measured", "wanted", "met"):
        table.add_column(name, justify="right")
    for verdict in verdicts:
        wanted = f"{'at most' if verdict.at_most else 'at least'} {verdict.bound:{verdict.form}}"
        table.add_row(verdict.text, verdict.measured.shown(verdict.form), wanted, "yes" if verdict.met else "no")
    return table


def about() -> dict[str, Any]:
    """Say on what, and when, this is measured."""
    return {
        "version": __version__,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "load_at_begin": os.getloadavg()[0],
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        builds.work(sys.argv[2:])
        sys.exit()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("benchmarks: ended"))  # with all that was started
    try:
        main()
    except NodmaError as error:
        sys.exit(f"benchmarks: error: {error}")
