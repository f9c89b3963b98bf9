"""Ours and the peers, side by side: the same image, the same front end, the same work, in turn."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Final

from rich.table import Table

from benchmarks.figures import Measured, Spread, paired_ratio
from benchmarks.peers import OURS, Peer
from benchmarks.plan import Outcome, Plan, Tick, Verdict
from benchmarks.targets import LARGE, TARGETS, Case, Target, entries

Runs = dict[tuple[Case, Peer], list[Measured]]

NOTES: Final = (
    "daemon: qemu-storage-daemon, vhost-user-blk, as it comes; best: with aio=io_uring and an iothread.",
    "bare C: the same system calls into the same buffers, no device. ours over it: the median of the rounds' ratios.",
    "CPU: microseconds of the device process, and of the front end, a request. kicks: notifications a request.",
    "sleeps: times that the front end waited for an interrupt, a request.",
    "waited: share of the time that the device was ready and had no core: much of it, and the machine had other work.",
)


def _chosen(plan: Plan) -> dict[Case, list[Peer]]:
    found = entries(targets_only=plan.quick)
    return {case: peers for case, peers in found.items() if plan.match in case.name(plan.disk.name)}


def steps(plan: Plan) -> int:
    """How often :func:`run` ticks."""
    return plan.rounds * sum(len(peers) for peers in _chosen(plan).values())


def run(plan: Plan, tick: Tick) -> Outcome:
    """Measure. Raises NodmaError if a peer does not work."""
    chosen = _chosen(plan)
    runs: Runs = defaultdict(list)
    for _ in range(plan.rounds):
        for case, peers in chosen.items():
            image = (plan.disk if case.on_disk else plan.tmpfs).image
            for peer in peers:
                tick(f"{peer.name}: {case.name(plan.disk.name)}")
                runs[case, peer].append(peer.measure(image, plan.work, case.work, plan.seconds))
    tables = [_table(plan, runs, chosen, large=large) for large in (False, True)]
    record = [_record(plan, case, peer, found) for (case, peer), found in runs.items()]
    return Outcome(record, [table for table in tables if table.row_count], list(NOTES), _verdicts(plan, runs))


def _rates(found: Sequence[Measured]) -> list[float]:
    return [run.rate for run in found]


def _record(plan: Plan, case: Case, peer: Peer, found: list[Measured]) -> dict[str, object]:
    where = (plan.disk if case.on_disk else plan.tmpfs).name
    return {"peer": peer.name, "on": where, **asdict(case.work), "runs": [asdict(run) for run in found]}


def _table(plan: Plan, runs: Runs, chosen: dict[Case, list[Peer]], *, large: bool) -> Table:
    title = "1 MiB" if large else "4 KiB"
    table = Table(title=f"{title}, at random: medians (least-most) of {plan.rounds} rounds", title_justify="left")
    table.add_column("work")
    table.add_column("by")
    for name in ("MB/s" if large else "requests/s", "ours over it", "p50 us", "p99 us"):
        table.add_column(name, justify="right")
    for name in ("device\nCPU us", "front\nCPU us", "kicks", "sleeps", "waited"):
        table.add_column(name, justify="right")
    for case, peers in chosen.items():
        if (case.work.bytes == LARGE) != large:
            continue
        for peer in peers:
            table.add_row(*_row(plan, runs, case, peer, first=peer is peers[0]), end_section=peer is peers[-1])
    return table


def _row(plan: Plan, runs: Runs, case: Case, peer: Peer, *, first: bool) -> list[str]:
    found = runs[case, peer]
    scale = case.work.bytes / 1e6 if case.work.bytes == LARGE else 1.0
    rates = Spread.of([rate * scale for rate in _rates(found)])
    ours = runs.get((case, OURS))
    ratio = paired_ratio(_rates(ours), _rates(found)).shown(".2f") if ours and peer is not OURS else ""
    figures = [f"{median(getattr(run, name) for run in found):.1f}" for name in ("p50_us", "p99_us")]
    figures += [f"{median(getattr(run, name) for run in found):.2f}" for name in ("device_cpu_us", "front_cpu_us")]
    figures += [f"{median(getattr(run, name) for run in found):.3f}" for name in ("kicks", "sleeps")]
    figures.append(f"{median(run.waited for run in found):.0%}")
    return [case.name(plan.disk.name) if first else "", peer.name, rates.shown(), ratio, *figures]


def _verdicts(plan: Plan, runs: Runs) -> list[Verdict]:
    return [
        _verdict(plan, target, case, theirs, runs)
        for target in TARGETS
        for case in target.cases
        for theirs in target.theirs
        if (case, target.ours) in runs and (case, theirs) in runs
    ]


def _verdict(plan: Plan, target: Target, case: Case, theirs: Peer, runs: Runs) -> Verdict:
    mine, other = runs[case, target.ours], runs[case, theirs]
    if target.cpu:
        ratio = paired_ratio([run.device_cpu_us for run in mine], [run.device_cpu_us for run in other])
    else:
        ratio = paired_ratio(_rates(mine), _rates(other))
    whom = f" ({theirs.name})" if len(target.theirs) > 1 else ""
    text = f"{target.text}{whom}, depth {case.work.depth}, {plan.disk.name if case.on_disk else plan.tmpfs.name}"
    return Verdict(text, ratio, target.bound, at_most=target.cpu)
