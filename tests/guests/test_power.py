"""Sleep, hibernation and processors that come and go, while a disk is written to and verified."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from nodma.errors import GuestError
from nodma.guest import Job, Kernel, Machine, Shape

pytestmark = [pytest.mark.timeout(300), pytest.mark.newest_suffices]
TIMES = 3
SEABIOS = "bios-256k.bin"
"""qboot, with which guests start faster, knows no way back from suspend to RAM."""


def scenario(lab: Any, name: str, drivers: Sequence[str] = (), **files: bytes | Path) -> Job:
    return Job(
        (lab.scenarios / f"{name}.sh").read_text(),
        drivers=["nodma", "virtio_blk", *drivers],
        programs=["fio"],
        files={"load.sh": lab.scenarios / "load.sh", **files},
    )


def press_power_button(machine: Machine, number: int) -> None:
    """Wake a guest from suspend to idle. One that is not asleep yet takes no notice, so it is pressed again."""
    for _ in range(30):
        machine.control("system_powerdown")
        with suppress(GuestError):
            machine.console.expect(f"^AWAKE {number}", 2)
            return
    raise AssertionError(machine.console.tail())


def wake(machine: Machine, number: int) -> None:
    """Wake a guest from suspend to RAM, once it is there."""
    machine.expect_event("SUSPEND", 60)
    machine.control("system_wakeup")
    machine.console.expect(f"^AWAKE {number}", 60)


@pytest.mark.parametrize(
    ("state", "shape", "wake_up"),
    [("freeze", Shape(), press_power_button), ("mem", Shape(firmware=SEABIOS), wake)],
    ids=["suspend to idle", "suspend to RAM"],
)
def test_a_guest_sleeps_and_its_io_goes_on(lab: Any, kernel: Kernel, state: str, shape: Shape, wake_up: Any) -> None:
    image = lab.image()
    job = scenario(lab, "sleep", ["button"], state=state.encode())
    with lab.serve(image) as device, lab.machine(kernel, job, [image], shape) as machine:
        for number in range(TIMES):
            machine.console.expect(f"^SLEEPS {number}", 60)
            wake_up(machine, number)
        outcome = machine.finish(60)
        report = device.stop()
    assert outcome.status == 0, outcome.console[-4000:]
    assert int(outcome.file("success")) == TIMES
    assert report["addresses_outside_window"] == 0


def test_a_guest_hibernates_and_goes_on_in_a_new_machine(lab: Any, kernel: Kernel) -> None:
    """The second machine has other device processes too: nothing but the two images is left of the first."""
    images = [lab.image("data"), lab.image("swap", 512 << 20)]
    job = scenario(lab, "hibernate")
    for boot in range(2):
        devices = [lab.serve(image) for image in images]
        try:
            with lab.machine(kernel, job, images) as machine:
                if boot == 0:
                    machine.console.expect("^HIBERNATES", 60)
                    machine.wait(90)
                else:
                    machine.console.expect("^RESUMES", 60)
                    machine.console.expect("^AWAKE", 60)
                    outcome = machine.finish(60)
            reports = [device.stop() for device in devices]
        finally:
            for device in devices:
                device.__exit__()
        assert all(report["addresses_outside_window"] == 0 for report in reports)
    assert outcome.status == 0, outcome.console[-4000:]
    assert int(outcome.file("rounds")) > 0


def test_processors_come_and_go_under_io(lab: Any, newest: Kernel) -> None:
    image = lab.image()
    job = scenario(lab, "processors")
    with lab.serve(image, "--queues", "4") as device, lab.machine(newest, job, [image], Shape(cpus=4)) as machine:
        outcome = machine.finish(150)
        report = device.stop()
    assert outcome.status == 0, outcome.console[-4000:]
    assert len(outcome.file("switched").splitlines()) == 2 * 3 * TIMES
    assert report["addresses_outside_window"] == 0
