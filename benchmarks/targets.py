"""What is compared with what, and the ratios that are to be reached: the targets, and the grid around them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from benchmarks.front import Work
from benchmarks.peers import BARE, DAEMON, DAEMON_BEST, INTERPRETED, OURS, Peer
from nodma.units import show_size

SMALL: Final = 4 << 10
LARGE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Case:
    """Some work, on an image ``on_disk`` or in memory."""

    work: Work
    on_disk: bool = True

    def name(self, disk: str) -> str:
        """As in ``4K read, depth 32, polled, ext4``, where ``disk`` is the disk's file system."""
        work = self.work
        return (
            f"{show_size(work.bytes)} {'write' if work.write else 'read'}, depth {work.depth},"
            f" {'polled' if work.polled else 'notified'}, {disk if self.on_disk else 'tmpfs'}"
        )


@dataclass(frozen=True, slots=True)
class Target:
    """In each case ours over theirs is at least ``bound``; or for CPU, which is ``at_most``, no more than it."""

    text: str
    bound: float
    cases: tuple[Case, ...]
    theirs: tuple[Peer, ...]
    ours: Peer = OURS
    cpu: bool = False


def _cases(depths: tuple[int, ...], *, size: int = SMALL, on_disk: bool = True, **work: bool) -> tuple[Case, ...]:
    return tuple(Case(Work(size, depth, **work), on_disk) for depth in depths)


TARGETS: Final = (
    Target("4K reads, polled, over its best", 2.0, _cases((32, 128), polled=True), (DAEMON_BEST,)),
    Target("4K reads, notified, over its best", 1.7, _cases((32, 128)), (DAEMON_BEST,)),
    Target("4K reads, notified, over its default", 4.5, _cases((32, 128), on_disk=False), (DAEMON,)),
    Target("4K reads one by one, polled, over any", 5.0, _cases((1,), polled=True), (DAEMON, DAEMON_BEST)),
    Target("4K writes, polled, over its best", 1.7, _cases((32, 128), polled=True, write=True), (DAEMON_BEST,)),
    Target("1M reads, polled, over its best", 1.0, _cases((32,), size=LARGE, polled=True), (DAEMON_BEST,)),
    Target("1M reads, notified, over its best", 1.0, _cases((32,), size=LARGE), (DAEMON_BEST,)),
    Target("device CPU a 4K read, over bare C", 1.15, _cases((128,), polled=True), (BARE,), cpu=True),
    Target("interpreted, over its default", 2.0, _cases((32,), on_disk=False), (DAEMON,), ours=INTERPRETED),
)

GRID: Final = tuple(
    Case(Work(size, depth, write=write, polled=polled), on_disk)
    for on_disk in (True, False)
    for size, depths in ((SMALL, (1, 32, 128)), (LARGE, (1, 32)))
    for write in (False, True)
    for depth in depths
    for polled in (True, False)
)


def entries(*, targets_only: bool) -> dict[Case, list[Peer]]:
    """Return each case with the peers to measure there, nodma first."""
    found: dict[Case, list[Peer]] = {}
    if not targets_only:
        for case in GRID:
            found[case] = [OURS, DAEMON, DAEMON_BEST, *([BARE] if case.work.polled else [])]
    for target in TARGETS:
        for case in target.cases:
            peers = found.setdefault(case, [])
            peers += [peer for peer in (target.ours, *target.theirs) if peer not in peers]
    return found
