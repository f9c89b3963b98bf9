"""On each kernel: a file system, discard, and fio, with nothing outside the window."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from nodma.guest import Kernel
from nodma.spec.profiles import SWIOTLB

FILES = 5000

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def image(module_lab: Any, kernel: Kernel) -> Path:
    path: Path = module_lab.image(kernel.name)
    return path


def make_tree(path: Path) -> Path:
    """5000 files of 0 to 12 KiB in ten directories, no two alike."""
    random = Random(20261124)
    with tarfile.open(path, "w") as archive:
        for number in range(FILES):
            member = tarfile.TarInfo(f"tree/d{number % 10}/below/f{number}")
            member.size = random.randrange(12 << 10)
            archive.addfile(member, io.BytesIO(random.randbytes(member.size)))
    return path


@pytest.fixture(scope="module")
def used(module_lab: Any, kernel: Kernel, image: Path) -> Any:
    """One run of the scenario, which the tests below look at."""
    tree = make_tree(module_lab.directory / "tree.tar")
    return module_lab.run(kernel, "everyday", [image], programs=["fio", "e2fsprogs"], files={"tree.tar": tree})


def test_the_kernel_is_the_one_that_was_asked_for(used: Any, kernel: Kernel) -> None:
    assert kernel.release in used.outcome.file("version")


def test_the_feature_was_accepted(used: Any) -> None:
    bits = used.outcome.file("features").strip()
    assert bits[SWIOTLB.feature] == "1"


def test_files_are_the_same_after_a_remount(used: Any, image: Path, fsck: Callable[[Path], None]) -> None:
    assert int(used.outcome.file("files")) == FILES
    assert used.outcome.file("checksums") == "same\n"
    fsck(image)


def test_discard_reaches_the_image(used: Any, image: Path) -> None:
    assert used.reports[0]["device"]["discards"] > 0
    assert image.stat().st_blocks * 512 < image.stat().st_size


def test_fio_verifies_all_that_it_wrote(used: Any) -> None:
    jobs = json.loads(used.outcome.file("fio.json"))["jobs"]
    assert len(jobs) == 2
    for job in jobs:
        assert job["error"] == 0
        assert job["job options"].get("verify", "crc32c") == "crc32c"
        assert job["write"]["io_bytes"] == job["read"]["io_bytes"] == 48 << 20


def test_all_of_it_went_through_the_window(used: Any) -> None:
    report = used.reports[0]
    assert used.outside == 0
    assert report["requests"] > 1000
    assert report["needs_reset"] == 0
    assert int(used.outcome.file("counters/bytes_from_device")) > 96 << 20
    assert int(used.outcome.file("counters/maps")) == int(used.outcome.file("counters/unmaps"))
