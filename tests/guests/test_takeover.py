"""Another kernel, or another driver, takes a device over that is in the middle of its work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nodma.guest import Job, Kernel, Shape

pytestmark = pytest.mark.timeout(300)
IDENTITY = "f41a4210"
"""Vendor and device id of a virtio block function, as bytes."""


def job_of(lab: Any, name: str, files: dict[str, bytes | Path], drivers: list[str], *programs: str) -> Job:
    files = {"load.sh": lab.scenarios / "load.sh", **files}
    return Job((lab.scenarios / f"{name}.sh").read_text(), drivers=drivers, programs=programs, files=files)


@pytest.mark.parametrize(("how", "reserved"), [("load", ""), ("crash", "crashkernel=320M")], ids=["kexec", "kdump"])
def test_another_kernel_finds_every_record(lab: Any, newest: Kernel, how: str, reserved: str) -> None:
    """The first kernel does not stop the device; whatever that still writes lies in the window, and nowhere else."""
    image = lab.image()
    drivers = ["nodma", "virtio_blk"]
    after = lab.directory / "after"
    job_of(lab, "after_kexec", {}, drivers, *(["fio"] if how == "load" else [])).initramfs(after, newest, lab.kit.tools)
    files: dict[str, bytes | Path] = {
        "how": how.encode(),
        "line": f"console=ttyS0 panic=-1 oops=panic {newest.append} nr_cpus=1 after_kexec".encode(),
        "kexec.py": lab.scenarios / "kexec.py",
        "vmlinuz": newest.image,
        "initramfs": after,
    }
    job = job_of(lab, "kexec", files, drivers, "python")
    shape = Shape(memory=1024, append=reserved)
    with lab.serve(image) as device, lab.machine(newest, job, [image], shape) as machine:
        machine.console.expect("^LEAVES", 60)
        machine.console.expect("Command line:.* after_kexec", 60)
        outcome = machine.finish(90)
        report = device.stop()
    assert outcome.status == 0, outcome.console[-4000:]
    assert outcome.file("release").strip() == newest.release
    assert int(outcome.file("maps")) > 0
    assert report["addresses_outside_window"] == 0
    assert report["clients"] == 1
    if how == "crash":
        assert outcome.file("magic") == "ELF"
        assert int(outcome.file("vmcore")) > 512 << 20
        assert outcome.file("dumped") == outcome.file("stored")


IOMMU = Shape(arguments=["-device", "intel-iommu,caching-mode=on"], append="intel_iommu=on iommu.passthrough=0")


@pytest.mark.parametrize(
    ("driver", "modules", "shape"),
    [
        ("uio_pci_generic", ["uio_pci_generic"], Shape()),
        ("vfio-pci", ["vfio_pci", "vfio_iommu_type1"], IOMMU),
    ],
    ids=["uio_pci_generic", "vfio-pci"],
)
def test_a_function_goes_to_another_driver_and_back(
    lab: Any, newest: Kernel, driver: str, modules: list[str], shape: Shape
) -> None:
    image = lab.image()
    drivers = ["nodma", "virtio_blk", *modules]
    files: dict[str, bytes | Path] = {"driver": driver.encode(), (use := f"use_{driver}.py"): lab.scenarios / use}
    job = job_of(lab, "handover", files, drivers, "fio", "python")
    with lab.serve(image) as device, lab.machine(newest, job, [image], shape) as machine:
        outcome = machine.finish(120)
        report = device.stop()
    assert outcome.status == 0, outcome.console[-4000:]
    assert outcome.file("handed").split() == ["0", "1", "2"]
    assert outcome.file("used").split() == [IDENTITY] * 3
    assert report["addresses_outside_window"] == 0
