"""The profile dmb, and two disks in one pool, in real guests: everything verified, everything inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nodma.guest import Job, Kernel
from nodma.guest.machine import Outcome
from nodma.spec.profiles import DMB, SWIOTLB, Profile

pytestmark = pytest.mark.timeout(240)
POOL = 2 << 20


def all_verified(outcome: Outcome, disks: int) -> None:
    jobs = json.loads(outcome.file("fio.json"))["jobs"]
    assert len(jobs) == disks
    for job in jobs:
        assert job["error"] == 0
        assert job["write"]["io_bytes"] == job["read"]["io_bytes"] == 24 << 20


def accepted(outcome: Outcome) -> list[Profile]:
    bits = outcome.file("features").strip()
    return [profile for profile in (SWIOTLB, DMB) if bits[profile.feature] == "1"]


def counter(outcome: Outcome, device: int, name: str) -> int:
    return int(outcome.file(f"virtio{device}/{name}"))


def test_a_disk_by_offsets(lab: Any, kernel: Kernel) -> None:
    run = lab.run(kernel, "profile", [lab.image()], "--profile", "dmb", programs=["fio"])
    all_verified(run.outcome, 1)
    assert accepted(run.outcome) == [DMB]
    assert (run.outside, run.reports[0]["needs_reset"]) == (0, 0)
    assert counter(run.outcome, 0, "maps") == counter(run.outcome, 0, "unmaps") > 1000


@pytest.fixture
def pair(lab: Any) -> list[Path]:
    return [lab.image("one"), lab.image("two")]


def test_two_disks_in_one_pool(lab: Any, kernel: Kernel, pair: list[Path]) -> None:
    job = Job((lab.scenarios / "profile.sh").read_text(), drivers=["nodma", "virtio_blk"], programs=["fio"])
    run = lab.run_slot(kernel, job, pair, "--pool", str(POOL))
    all_verified(run.outcome, 2)
    assert accepted(run.outcome) == [SWIOTLB]
    assert run.outside == 0
    for device, report in enumerate(run.reports):
        assert report["needs_reset"] == 0
        assert report["device"]["bytes_read"] >= 24 << 20
        assert counter(run.outcome, device, "size") == POOL
        assert counter(run.outcome, device, "functions") == 2
        assert counter(run.outcome, device, "maps") == counter(run.outcome, device, "unmaps") > 1000


def test_a_flood_leaves_a_neighbour_what_it_has_reserved(lab: Any, newest: Kernel, pair: list[Path]) -> None:
    job = Job((lab.scenarios / "neighbours.sh").read_text(), drivers=["nodma", "virtio_blk"], programs=["fio"])
    run = lab.run_slot(newest, job, pair, "--pool", str(POOL))
    assert counter(run.outcome, 0, "full") > 0
    assert counter(run.outcome, 1, "full") == 0
    assert counter(run.outcome, 1, "reserved") > 0
    assert run.outside == 0
    latency = {name: json.loads(run.outcome.file(f"{name}.json"))["jobs"][0]["read"] for name in ("alone", "beside")}
    assert all(read["total_ios"] > 100 for read in latency.values())
