"""Guests that do not know restricted DMA fail early and clean; firmware goes on."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nodma.guest import Job, Kernel, Shape
from nodma.spec.virtio import Status

pytestmark = pytest.mark.timeout(900)


def test_required_a_stock_kernel_says_why_and_boots_from_another_disk(lab: Any, kernel: Kernel) -> None:
    job = Job((lab.scenarios / "stock.sh").read_text(), drivers=["virtio_blk"], root="0000:00:08.0")
    tree, other = lab.directory / "tree", lab.image("other", 64 << 20)
    job.root_file_system(tree, lab.kit.tools)
    subprocess.run(["mkfs.ext4", "-q", "-d", tree, other], check=True)
    image = lab.image()
    theirs = ["-drive", f"if=none,id=other,format=raw,file={other}", "-device", "virtio-blk-pci,drive=other,addr=8.0"]
    with lab.serve(image) as device, lab.machine(kernel, job, [image], Shape(arguments=theirs)) as machine:
        outcome = machine.finish(400)
        report = device.stop()
    assert outcome.status == 0, machine.console.tail()
    assert "virtio: device refuses features" in outcome.file("dmesg")
    (disk,) = outcome.file("disks").split()
    assert outcome.file("root").startswith(f"/dev/{disk} / ext4")
    refused, other_line = outcome.file("devices").splitlines()
    assert int(refused.split()[1], 16) == Status.ACKNOWLEDGE | Status.DRIVER | Status.FAILED
    assert other_line.split()[2] == "virtio_blk"
    assert report["features_refused"] == 1
    assert report["requests"] == report["addresses_outside_window"] == 0


def test_hopeful_the_first_address_outside_is_caught(lab: Any, kernel: Kernel) -> None:
    image = lab.image()
    image.write_bytes(b"untouched disk.." * 65536)
    before = hashlib.sha256(image.read_bytes()).digest()
    late = {f"late/{name}": content for name, content in kernel.files_of(["virtio_blk"]).items()}
    late = {name: content for name, content in late.items() if "virtio_blk" in name}
    job = Job((lab.scenarios / "hopeful.sh").read_text(), drivers=["virtio_pci"], files=late)
    with lab.serve(image, "--policy", "hopeful") as device, lab.machine(kernel, job, [image]) as machine:
        status = int(machine.console.expect(r"STATUS (0x\w+)", 200)[1], 16)
        machine.console.expect("THE GUEST IS WELL", 200)
        machine.kill()
        report = device.stop()
    assert status & Status.DEVICE_NEEDS_RESET
    assert report["needs_reset"] == 1
    assert report["addresses_outside_window"] == 1
    assert "outside the window [0x" in report["last_reason"]
    assert report["requests"] == 0
    assert hashlib.sha256(image.read_bytes()).digest() == before


@pytest.mark.parametrize("firmware", ["bios-256k.bin", "OVMF.fd"], ids=["SeaBIOS", "OVMF"])
def test_firmware_meets_the_disk_and_boots_on(lab: Any, newest: Kernel, firmware: str) -> None:
    image: Path = lab.image()
    job = Job("test -b $(disk)", drivers=["nodma", "virtio_blk"])
    with lab.serve(image) as device, lab.machine(newest, job, [image], Shape(firmware=firmware)) as machine:
        machine.console.expect("Linux version", 200)
        outcome = machine.finish(400)
        report = device.stop()
    assert outcome.status == 0
    assert report["features_refused"] == 1  # the firmware's driver
    assert report["addresses_outside_window"] == 0
