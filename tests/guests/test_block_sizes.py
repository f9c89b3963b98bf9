"""A disk with large sectors below it, whose cache a guest switches, and which grows while a guest uses it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodma.guest import Job, Kernel

pytestmark = pytest.mark.timeout(900)
SIZE = 64 << 20


@pytest.fixture
def backing(tmp_path: Path) -> Path:
    path = tmp_path / "backing"
    with path.open("wb") as file:
        file.truncate(SIZE)
    return path


@pytest.fixture
def loop_4k(backing: Path) -> Iterator[Path]:
    command = ["losetup", "-b", "4096", "-f", "--show", str(backing)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no loop devices here: {made.stderr.strip()}")
    yield Path(made.stdout.strip())
    subprocess.run(["losetup", "-d", made.stdout.strip()], check=True)


def test_a_disk_on_large_sectors_is_whole_switches_its_cache_and_grows(
    lab: Any, newest: Kernel, loop_4k: Path, backing: Path
) -> None:
    image = lab.directory / "disk.img"
    image.symlink_to(loop_4k)
    job = Job(
        (lab.scenarios / "block_sizes.sh").read_text(),
        drivers=["nodma", "virtio_blk"],
        programs=["e2fsprogs", "python"],
    )
    with lab.serve(image) as device, lab.machine(newest, job, [image]) as machine:
        machine.console.expect("PLEASE grow", 400)
        os.truncate(backing, 2 * SIZE)
        subprocess.run(["losetup", "-c", loop_4k], check=True)
        os.kill(device.pid, signal.SIGUSR1)
        outcome = machine.finish(400)
        report = device.stop()
    assert outcome.status == 0, machine.console.tail()
    assert outcome.file("sizes").split() == ["4096", "512", "4096"]
    assert len(outcome.file("serial").strip()) == 16
    assert outcome.file("errors") == ""
    x, zero = "x", "\0"
    zeroed = [*range(1, 3), *range(10, 26)]
    data = outcome.file("data")
    for sector in range(128):
        if sector != 40:  # which was discarded
            assert set(data[512 * sector : 512 * (sector + 1)]) == {zero if sector in zeroed else x}, sector
    assert outcome.file("cache").splitlines() == ["write back", "write through", "write back"]
    assert int(outcome.file("grown")) == 2 * SIZE // 512
    assert report["device"]["errors"] == 0
    assert report["device"]["discards"] > 0
    assert report["device"]["write_zeroes"] > 0
