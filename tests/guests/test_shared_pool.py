"""Two disks of one slot in one pool, in real guests: contents, fairness, and what comes and goes under I/O."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from nodma.device import BlockDevice
from nodma.device.image import Image
from nodma.guest import Job, Kernel
from nodma.pci_function import PciFunction, PoolKeeper, SharedPoolConfig

pytestmark = pytest.mark.timeout(900)
POOL = 1 << 20
PHASES = ["bind", "reset", "driver", "module", "removal"]


@pytest.fixture(scope="module")
def shared(module_lab: Any, kernel: Kernel) -> Any:
    """One run of the scenario, which the tests below look at."""
    images = [module_lab.image(f"{kernel.name}-{name}", 8 << 20) for name in ("owner", "sharer")]
    job = Job(
        (module_lab.scenarios / "shared_pool.sh").read_text(),
        drivers=["nodma watch_ms=200", "virtio_blk"],
        programs=["fio"],
    )
    return module_lab.run_slot(kernel, job, images, "--pool", str(POOL))


def counter(shared: Any, name: str) -> int:
    return int(shared.outcome.file(name))


def test_both_verify_all_that_they_wrote(shared: Any) -> None:
    for job in json.loads(shared.outcome.file("verify.json"))["jobs"]:
        assert job["error"] == 0
        assert job["write"]["io_bytes"] == job["read"]["io_bytes"] == 8 << 20


def test_the_pool_is_one(shared: Any) -> None:
    for function in ("owner", "sharer"):
        assert counter(shared, f"{function}/functions") == 2
        assert counter(shared, f"{function}/size") == POOL
        assert counter(shared, f"{function}/reserved") == 512 // 16
    peaks = [counter(shared, f"{function}/peak") for function in ("owner", "sharer")]
    assert max(peaks) < counter(shared, "sharer/pool_peak") <= min(512, sum(peaks))


def test_no_address_was_outside_the_shared_window(shared: Any) -> None:
    for report in shared.reports:
        assert report["requests"] > 500
        assert report["addresses_outside_window"] == 0
        assert report["needs_reset"] == 0


def test_no_slot_is_lost_whatever_comes_and_goes(shared: Any) -> None:
    assert shared.outcome.file("done").split() == PHASES


def test_a_sharer_without_its_owner_is_refused(shared: Any) -> None:
    assert shared.outcome.file("refusal") == "capability 10 names the region of 05.0, and there is no such function\n"


def test_a_sharer_is_its_owners_consumer(shared: Any) -> None:
    """So it loses its driver before its owner does, and is suspended before it."""
    assert re.search(r"pci:0000:00:05\.0--virtio:virtio\d+", shared.outcome.file("links"))


def test_sharing_is_said_where_it_is_switched_on(shared: Any) -> None:
    assert "functions that share this pool can read each other's data; 64 KiB are reserved" in shared.outcome.file(
        "dmesg"
    )


class Sleeper(PciFunction):
    """A function that leaves its requests where they are while it is asleep."""

    asleep = False

    def service(self) -> bool:
        return False if self.asleep else super().service()


def test_a_reservation_keeps_room_beside_a_flood(lab: Any, newest: Kernel) -> None:
    keeper = PoolKeeper(POOL)
    images = [lab.image(name, 8 << 20) for name in ("owner", "sharer")]
    owner, sharer = (
        Sleeper(BlockDevice(Image(image), pool=POOL // 2), pool=POOL, share=SharedPoolConfig(keeper, number))
        for image, number in zip(images, (None, 0), strict=True)
    )
    job = Job((lab.scenarios / "flood.sh").read_text(), drivers=["nodma", "virtio_blk"], programs=["fio"])
    with (
        lab.serving(owner, lab.socket(images[0])),
        lab.serving(sharer, lab.socket(images[1])),
        lab.machine(newest, job, [images]) as machine,
    ):
        for asked in ("sleep", "wake") * 2:
            machine.console.expect(f"PLEASE {asked}", 200)
            owner.asleep = asked == "sleep"
            machine.console.send("done")
        outcome = machine.finish(400)
    keeper.close()
    assert outcome.status == 0, machine.console.tail()
    counters = {
        name: int(value) for name, value in outcome.files.items() if name.startswith(("reserved", "unreserved"))
    }
    slots, share = POOL // counters["reserved/slot_size"], counters["reserved/sharer/reserved"]
    assert share == slots // 16
    assert slots - share - 5 < counters["reserved/used"] <= slots - share
    assert counters["reserved/sharer/full"] == 0
    assert counters["reserved/sharer/unmaps"] >= 200
    assert counters["unreserved/sharer/reserved"] == 0
    assert counters["unreserved/pool_used"] > slots - 5
    assert counters["unreserved/sharer/full"] > 0
