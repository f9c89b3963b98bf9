"""Pools that fill, several disks with several queues, and a root file system on a disk without DMA."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nodma.guest import Job, Kernel, Shape

pytestmark = pytest.mark.timeout(900)
KIB = 1 << 10


def fio_errors(run: Any) -> list[int]:
    return [job["error"] for job in json.loads(run.outcome.file("fio.json"))["jobs"]]


def test_a_pool_that_fills_is_slow_and_right(lab: Any, kernel: Kernel) -> None:
    run = lab.run(kernel, "small_pool", [lab.image()], "--pool", "256K", programs=["fio"])
    assert fio_errors(run) == [0, 0]
    assert run.outside == 0
    assert int(run.outcome.file("counters/size")) == 256 * KIB
    assert int(run.outcome.file("counters/full")) > 0
    assert int(run.outcome.file("counters/peak")) > 100  # of 128
    assert run.outcome.file("counters/maps") == run.outcome.file("counters/unmaps")


def test_two_disks_of_four_queues_on_four_processors(lab: Any, newest: Kernel) -> None:
    images = [lab.image("one"), lab.image("two")]
    run = lab.run(newest, "two_disks", images, "--queues", "4", programs=["fio"], shape=Shape(cpus=4))
    assert run.outcome.file("queues").split() == ["4", "4"]
    assert fio_errors(run) == [0] * 8
    assert run.outside == 0
    assert all(report["requests"] > 1000 for report in run.reports)
    for slot in (5, 6):
        assert int(run.outcome.file(f"0000:00:{slot:02x}.0/areas")) == 4
    used = [line for line in run.outcome.file("interrupts").splitlines() if "-req." in line]
    assert len(used) == 8
    assert all(re.search(r"\s[1-9]\d*\s", line) for line in used)


def test_the_root_file_system_is_the_disk(lab: Any, kernel: Kernel, fsck: Callable[[Path], None]) -> None:
    job = Job(
        (lab.scenarios / "root.sh").read_text(),
        drivers=["nodma", "virtio_blk"],
        programs=["e2fsprogs"],
        root="0000:00:05.0",
    )
    tree = lab.directory / "tree"
    job.root_file_system(tree, lab.kit.tools)
    image = lab.image()
    subprocess.run(["mkfs.ext4", "-q", "-E", "root_owner=0:0", "-d", tree, image], check=True)
    with lab.serve(image) as device, lab.machine(kernel, job, [image]) as machine:
        outcome = machine.finish(400)
        report = device.stop()
    assert outcome.status == 0, machine.console.tail()
    assert outcome.file("root").startswith("/dev/")
    assert " / ext4 " in outcome.file("root")
    assert report["addresses_outside_window"] == 0
    assert report["device"]["bytes_read"] > 8 << 20
    fsck(image)
    data = lab.directory / "data"
    subprocess.run(["debugfs", "-R", f"dump /data {data}", image], check=True, capture_output=True)
    assert hashlib.sha256(data.read_bytes()).hexdigest() == outcome.file("digest").split()[0]
