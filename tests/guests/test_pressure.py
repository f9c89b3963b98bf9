"""Too little memory: with eight disks, and with every allocation of a probe failing in its turn."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nodma.guest import Kernel, Shape

pytestmark = pytest.mark.timeout(300)


def test_eight_disks_under_memory_pressure(lab: Any, newest: Kernel) -> None:
    """Swapping goes through a window as well: what frees memory must not wait for memory."""
    images = [lab.image(f"disk{number}") for number in range(7)] + [lab.image("swap", 1 << 30)]
    shape = Shape(memory=288, cpus=2)
    run = lab.run(newest, "pressure", images, "--pool", "1M", programs=["fio"], shape=shape, seconds=240)
    jobs = json.loads(run.outcome.file("fio.json"))["jobs"]
    assert [job["error"] for job in jobs] == [0] * 7
    assert run.outcome.file("one") == run.outcome.file("other")
    swapped = dict(line.split() for line in run.outcome.file("swapped").splitlines())
    assert int(swapped["pswpout"]) * 4096 > 64 << 20
    assert int(swapped["pswpin"]) * 4096 > 64 << 20
    assert run.outcome.file("killed").strip() == "0"
    assert run.outside == 0
