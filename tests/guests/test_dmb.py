"""The profile dmb in real guests: everything verified, everything inside, and offset 0 never used."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nodma.guest import Kernel
from nodma.spec.profiles import DMB, PROFILES

pytestmark = pytest.mark.timeout(900)


def test_each_slot_is_used_but_that_at_offset_0(lab: Any, newest: Kernel) -> None:
    """DMB-D2: a device that is given offset 0 refuses it, and asks for a reset."""
    run = lab.run(newest, "small_pool", [lab.image()], "--profile", "dmb", "--pool", "256K", programs=["fio"])
    assert [job["error"] for job in json.loads(run.outcome.file("fio.json"))["jobs"]] == [0, 0]
    counters = {name.partition("/")[2]: int(value) for name, value in run.outcome.files.items() if "/" in name}
    assert counters["feature"] == DMB.feature
    assert counters["full"] > 0
    assert counters["slots"] * 3 // 4 < counters["peak"] < counters["slots"]
    assert counters["maps"] == counters["unmaps"]
    assert (run.outside, run.reports[0]["needs_reset"]) == (0, 0)


def test_a_disk_by_offsets(lab: Any, kernel: Kernel) -> None:
    run = lab.run(kernel, "dmb", [lab.image()], "--profile", "dmb", programs=["fio"])
    (job,) = json.loads(run.outcome.file("fio.json"))["jobs"]
    assert job["error"] == 0
    assert job["write"]["io_bytes"] == job["read"]["io_bytes"] == 24 << 20
    bits = run.outcome.file("features").strip()
    assert [profile for profile in PROFILES.values() if bits[profile.feature] == "1"] == [DMB]
    assert (run.outside, run.reports[0]["needs_reset"]) == (0, 0)
    assert int(run.outcome.file("maps")) == int(run.outcome.file("unmaps")) > 1000
