"""A guest with a virtual IOMMU: a device without DMA works beside one whose DMA is translated."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from nodma.guest import Kernel, Kit, Shape
from nodma.guest.debian import SUITES
from nodma.spec.virtio import Feature

pytestmark = pytest.mark.timeout(900)

IOMMUS = {
    "intel-iommu": ("intel-iommu,caching-mode=on", "intel_iommu=on iommu.passthrough=0", ()),
    "virtio-iommu": ("virtio-iommu-pci,addr=3.0", "iommu.passthrough=0", ("virtio_iommu",)),
}
"""QEMU's device, what the kernel is told, and drivers that must be loaded before all others."""

PAIRS = [
    pytest.param(iommu, suite, id=f"{iommu}-{suite}")
    for iommu in IOMMUS
    for suite in SUITES
    if (iommu, suite) != ("virtio-iommu", "bookworm")  # Debian builds 6.1's cloud kernel without its driver
]


def card(directory: Path) -> list[str]:
    """QEMU's own network card, whose driver uses the DMA API; it serves a file of 4 MiB."""
    content = Random(20261126).randbytes(4 << 20)
    (directory / "file").write_bytes(content)
    (directory / "file.sha256").write_text(f"{hashlib.sha256(content).hexdigest()}  file\n")
    card = "virtio-net-pci,netdev=net,addr=9.0,iommu_platform=on,disable-legacy=on"
    return ["-netdev", f"user,id=net,tftp={directory}", "-device", card]


@pytest.mark.parametrize(("iommu", "suite"), PAIRS)
def test_a_disk_without_dma_works_beside_a_translated_card(
    lab: Any, kit: Kit, iommu: str, suite: str, tmp_path: Path
) -> None:
    kernel: Kernel = kit.kernel(suite)
    device, append, first = IOMMUS[iommu]
    served = tmp_path / "served"
    served.mkdir()
    shape = Shape(arguments=["-device", device, *card(served)], append=append)
    run = lab.run(
        kernel,
        "iommu",
        [lab.image()],
        drivers=[*first, "nodma", "virtio_blk", "virtio_net"],
        programs=["fio"],
        files={"file.sha256": served / "file.sha256"},
        shape=shape,
    )
    domains = run.outcome.file("function.domain").split() + run.outcome.file("card.domain").split()
    assert len(domains) == 3
    assert set(domains) <= {"DMA", "DMA-FQ"}  # both are translated, and stay so
    assert run.outcome.file("card.features")[Feature.ACCESS_PLATFORM] == "1"
    assert run.outcome.file("downloads").split() == ["file:", "OK"] * 3
    (job,) = json.loads(run.outcome.file("fio.json"))["jobs"]
    assert job["error"] == 0
    assert job["write"]["io_bytes"] == job["read"]["io_bytes"] == 32 << 20
    assert int(run.outcome.file("counters/maps")) == int(run.outcome.file("counters/unmaps")) > 500
    assert run.outcome.file("refused").strip() == "1"  # without the module; with it nothing is
    assert (run.outside, run.reports[0]["needs_reset"]) == (0, 0)
