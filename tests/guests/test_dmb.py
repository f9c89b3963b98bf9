"""The profile dmb in real guests: everything verified, everything inside."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nodma.guest import Kernel
from nodma.spec.profiles import DMB, PROFILES

pytestmark = pytest.mark.timeout(240)


def test_a_disk_by_offsets(lab: Any, kernel: Kernel) -> None:
    run = lab.run(kernel, "dmb", [lab.image()], "--profile", "dmb", programs=["fio"])
    (job,) = json.loads(run.outcome.file("fio.json"))["jobs"]
    assert job["error"] == 0
    assert job["write"]["io_bytes"] == job["read"]["io_bytes"] == 24 << 20
    bits = run.outcome.file("features").strip()
    assert [profile for profile in PROFILES.values() if bits[profile.feature] == "1"] == [DMB]
    assert (run.outside, run.reports[0]["needs_reset"]) == (0, 0)
    assert int(run.outcome.file("maps")) == int(run.outcome.file("unmaps")) > 1000
