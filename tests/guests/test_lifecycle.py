"""Devices that come and go under I/O: no slot is lost, and nothing that was flushed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from nodma.guest import Job, Kernel, Shape

pytestmark = pytest.mark.timeout(900)
TIMES = 10


def test_unbind_remove_rmmod_and_reset_under_io(lab: Any, kernel: Kernel) -> None:
    drivers = ["nodma watch_ms=200", "virtio_blk"]
    run = lab.run(kernel, "lifecycle", [lab.image()], drivers=drivers, seconds=600)
    done = Counter(line.split()[0] for line in run.outcome.file("done").splitlines())
    assert done == {"unbind": TIMES, "remove": TIMES, "rmmod": TIMES, "reset": TIMES}
    assert run.outcome.file("records").strip() == str(4 * TIMES)
    assert run.outside == 0


def test_reboot_under_io(lab: Any, newest: Kernel) -> None:
    image = lab.image()
    job = Job((lab.scenarios / "reboot.sh").read_text(), drivers=["nodma", "virtio_blk"])
    with lab.serve(image) as device, lab.machine(newest, job, [image], Shape(reboots=True)) as machine:
        outcome = machine.finish(400)
        report = device.stop()
    assert outcome.file("boots").strip() == str(TIMES)
    assert outcome.console.count("REBOOT record") == TIMES
    assert report["addresses_outside_window"] == 0
    assert report["clients"] == 1
