"""What is compared, and how a target is judged."""

from __future__ import annotations

from pathlib import Path

from benchmarks.chart import grouped
from benchmarks.figures import Spread
from benchmarks.front import Work
from benchmarks.peers import BARE, DAEMON, DAEMON_BEST, OURS
from benchmarks.plan import Verdict, file_system
from benchmarks.targets import TARGETS, Case, entries


def test_every_target_is_measured() -> None:
    for targets_only in (True, False):
        found = entries(targets_only=targets_only)
        for target in TARGETS:
            for case in target.cases:
                assert {target.ours, *target.theirs} <= set(found[case])


def test_the_grid_has_every_peer() -> None:
    assert found_in_grid() >= {OURS, DAEMON, DAEMON_BEST, BARE}


def found_in_grid() -> set[object]:
    return set(entries(targets_only=False)[Case(Work(write=True, polled=True), on_disk=False)])


def test_a_case_says_what_it_is() -> None:
    assert Case(Work(1 << 20, 32, write=True)).name("ext4") == "1M write, depth 32, notified, ext4"
    assert Case(Work(polled=True), on_disk=False).name("ext4") == "4K read, depth 32, polled, tmpfs"


def test_a_verdict_goes_by_the_median() -> None:
    assert Verdict("", Spread(2.0, 1.0, 3.0), 2.0).met
    assert not Verdict("", Spread(1.9, 1.0, 3.0), 2.0).met
    assert Verdict("", Spread(1.1, 1.0, 3.0), 1.15, at_most=True).met
    assert not Verdict("", Spread(1.2, 1.0, 3.0), 1.15, at_most=True).met


def test_a_file_system_is_named() -> None:
    assert file_system(Path("/proc/self")) == "proc"


def test_a_chart_shows_disks_and_reads_first() -> None:
    def row(**more: object) -> dict[str, object]:
        work = {"bytes": 4096, "depth": 32, "write": False, "polled": True, "on": "ext4", "peer": OURS.name}
        return {**work, **more}

    rows = [row(on="tmpfs"), row(write=True), row(), row(bytes=1 << 20), row(peer="somebody")]
    assert list(grouped(rows)) == [
        "read, depth 32\npolled, ext4",
        "write, depth 32\npolled, ext4",
        "read, depth 32\npolled, tmpfs",
    ]
