"""The memory bill of `nodma size`, held against what guests took at most."""

from __future__ import annotations

from typing import Any

import pytest

from nodma.guest import Job, Kernel, Shape
from nodma.pool_sizing import Disk, pool_for, slots_needed
from nodma.spec.profiles import PROFILES

pytestmark = pytest.mark.timeout(900)
WITHIN = 0.15


@pytest.mark.parametrize(
    ("disk", "jobs", "profile"),
    [
        (Disk(depth=1), 1, "swiotlb"),
        (Disk(depth=32), 1, "dmb"),
        (Disk(depth=64, request=16 << 10), 1, "swiotlb"),
        (Disk(queues=2, depth=64, request=64 << 10), 2, "swiotlb"),
    ],
    ids=lambda value: f"depth {value.depth}, {value.request >> 10}K" if isinstance(value, Disk) else str(value),
)
def test_the_bill_is_what_a_guest_takes(lab: Any, newest: Kernel, disk: Disk, jobs: int, profile: str) -> None:
    bill = slots_needed(disk)
    pool = pool_for([bill], PROFILES[profile])
    load = f"depth={disk.depth // jobs}\njobs={jobs}\nsize={disk.request}\n".encode()
    run = lab.run(
        newest,
        "peak",
        [lab.image()],
        *("--pool", str(max(pool, 4 << 20)), "--queues", str(disk.queues), "--profile", profile),
        programs=["fio"],
        files={"load": load},
        shape=Shape(cpus=jobs),
    )
    peak = int(run.outcome.file("peak"))
    assert int(run.outcome.file("full")) == 0
    assert abs(peak - bill.slots) <= WITHIN * bill.slots, (peak, bill)


def test_the_bill_of_a_shared_pool_is_the_sum(lab: Any, newest: Kernel) -> None:
    disk = Disk(depth=32, request=16 << 10)
    load = "ioengine=libaio\ndirect=1\nrw=randread\niodepth=32\nbs=16k\nsize=32m\nruntime=5\ntime_based\n"
    script = """
        set -e
        for function in 0000:00:05.0 0000:00:05.1; do
            printf '[%s]\\nfilename=%s\\n' $function $(disk $function) && cat /job/load
        done >/tmp/load
        fio /tmp/load --eta=never --output-format=json --output=/out/fio.json
        cat /sys/bus/pci/devices/0000:00:05.0/virtio*/nodma/pool_peak >/out/peak
    """
    job = Job(script, drivers=["nodma", "virtio_blk"], programs=["fio"], files={"load": load.encode()})
    run = lab.run_slot(newest, job, [lab.image("one"), lab.image("two")], "--pool", "4M")
    peak, bill = int(run.outcome.file("peak")), 2 * slots_needed(disk).slots
    assert abs(peak - bill) <= WITHIN * bill, (peak, bill)
