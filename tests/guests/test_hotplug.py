"""The recipe of docs/guests.md for a disk that is plugged in while the guest runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nodma.errors import GuestError
from nodma.guest import Job, Kernel, Kit, Machine, Shape
from nodma.hosting.process import DeviceProcess

pytestmark = [pytest.mark.timeout(900), pytest.mark.distribution_kernel, pytest.mark.newest_suffices]

SECONDS = 200
PORT = "pcie-root-port,id=rp1,chassis=1,addr=9,pref64-reserve=32M"
ABORTS_ON_UNPLUG = ((11, 1, 3),)
"""QEMUs that abort when a vfio-user device is unplugged, whatever its guest does."""

SCRIPT = """
echo READY
disk 0000:01:00.0
dd if=/dev/urandom of=/tmp/a bs=64k count=64 2>/dev/null
dd if=/tmp/a of=$(disk 0000:01:00.0) bs=64k oflag=direct 2>/dev/null
dd if=$(disk 0000:01:00.0) of=/tmp/b bs=64k count=64 iflag=direct 2>/dev/null
cmp /tmp/a /tmp/b || exit 1
cat /sys/bus/pci/devices/0000:01:00.0/virtio*/nodma/maps >/out/maps
echo PLUGGED
read -r go_on
"""


def machine(kit: Kit, kernel: Kernel, directory: Path, script: str, *, port: str = PORT) -> Machine:
    job = Job(script, drivers=["nodma", "virtio_blk"])
    shape = Shape(firmware="bios-256k.bin", arguments=["-device", port])
    return Machine(kit.tools, kernel, job, shape=shape, directory=directory)


def test_the_page_shows_this_port() -> None:
    assert PORT in (Path(__file__).parents[2] / "docs" / "guests.md").read_text()


def plug(running: Machine, socket: Path) -> None:
    running.console.expect("^READY", SECONDS)
    path = {"path": str(socket), "type": "unix"}
    running.control("device_add", driver="vfio-user-pci", id="disk", bus="rp1", rombar=0, socket=path)


def test_a_disk_is_plugged_in(lab: Any, kit: Kit, kernel: Kernel, tmp_path: Path) -> None:
    socket = tmp_path / "disk.sock"
    with DeviceProcess(lab.image(), socket) as device, machine(kit, kernel, tmp_path, SCRIPT) as running:
        plug(running, socket)
        running.console.expect("^PLUGGED", SECONDS)
        running.console.send("go on")
        outcome = running.finish(SECONDS)
        report = device.stop()
    assert outcome.status == 0, running.console.tail()
    assert int(outcome.file("maps")) > 100
    assert (report["addresses_outside_window"], report["needs_reset"]) == (0, 0)


def test_a_port_without_room_is_told(lab: Any, kit: Kit, newest: Kernel, tmp_path: Path) -> None:
    """Without pref64-reserve the window has no address, and the guest's log says so."""
    socket = tmp_path / "disk.sock"
    script = """
echo READY
until dmesg | grep -q 'nodma: no bouncing'; do usleep 100000; done
dmesg | grep 'no bouncing' >/out/refusal
"""
    port = "pcie-root-port,id=rp1,chassis=1,addr=9"
    with DeviceProcess(lab.image(), socket, "--pool", "64M") as device:
        with machine(kit, newest, tmp_path, script, port=port) as running:
            plug(running, socket)
            outcome = running.finish(SECONDS)
        assert device.stop()["requests"] == 0
    assert "which was given no address" in outcome.file("refusal")


def test_the_truth_about_unplugging(lab: Any, kit: Kit, newest: Kernel, tmp_path: Path) -> None:
    """QEMU 11.1.3 aborts; any other must take the disk out of a guest that goes on."""
    socket = tmp_path / "disk.sock"
    script = SCRIPT + "until ! [ -e /sys/bus/pci/devices/0000:01:00.0 ]; do usleep 100000; done\necho UNPLUGGED\n"
    aborts = kit.qemu.version in ABORTS_ON_UNPLUG
    with DeviceProcess(lab.image(), socket) as device, machine(kit, newest, tmp_path, script) as running:
        plug(running, socket)
        running.console.expect("^PLUGGED", SECONDS)
        running.console.send("go on")
        running.control("device_del", id="disk")
        if aborts:
            with pytest.raises(GuestError, match=r"QEMU ended with -6|the guest ended"):
                running.finish(SECONDS)
            assert "Assertion" in (tmp_path / "qemu.log").read_text()
        else:
            assert running.finish(SECONDS).status == 0
        device.stop()
