"""The pipeline of examples/copy_disks.py: from disk to disk, and no copy in the driver."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from nodma.driver import BlockDisk, open_disk, open_slot
from nodma.errors import UsageError

EXAMPLE = Path(__file__).parents[2] / "examples" / "copy_disks.py"


@pytest.fixture(scope="module")
def copy() -> Any:
    spec = importlib.util.spec_from_file_location("copy_disks", EXAMPLE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.copy


@pytest.mark.parametrize("depth", [1, 3, 16])
def test_a_disk_is_copied_without_a_copy_on_the_way(slot_of_disks: Any, copy: Any, depth: int) -> None:
    with open_slot(slot_of_disks.sockets) as slot, BlockDisk(slot.bus(0)) as source, BlockDisk(slot.bus(1)) as target:
        assert copy(source, target, depth=depth) == source.size
        for disk in (source, target):
            assert (disk.statistics.bytes_in, disk.statistics.bytes_out, disk.statistics.used) == (0, 0, 0)
    assert slot_of_disks.images[0].read_bytes() == slot_of_disks.images[1].read_bytes()


def test_between_separate_pools_there_are_two_copies(slot_of_disks: Any, served: Any, copy: Any) -> None:
    with open_disk(slot_of_disks.sockets[0]) as source, open_disk(served.path) as target:
        with pytest.raises(UsageError, match="copy the data"):
            copy(source, target)
        data = source.pread(64 << 10, 0)
        target.pwrite(data, 0)
        assert source.statistics.bytes_out + target.statistics.bytes_in == 2 * len(data)
