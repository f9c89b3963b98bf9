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


@pytest.mark.needs_debug_kernel
def test_each_allocation_of_a_probe_fails_in_its_turn(lab: Any, newest: Kernel) -> None:
    """One that fails ends the probe and nothing else: nothing leaks, no lock stays taken, the next probe works."""
    files = {name: lab.scenarios / name for name in ("load.sh", "fail_probe.py")}
    shape = Shape(append="kmemleak=on loglevel=5")
    programs = ["fio", "python"]
    run = lab.run(newest, "fail_probe", [lab.image()], programs=programs, files=files, shape=shape, seconds=600)
    points = [line.split("\t") for line in run.outcome.file("points").splitlines()]
    assert [name for name, *_ in points] == ["virtio device", "PCI function", "module"]
    for name, count, succeeded in points:
        assert int(count) > 20, name
        assert succeeded == "True", name
    assert "nodma" not in run.outcome.file("leaks")
    assert run.outside == 0
