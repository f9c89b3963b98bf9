"""A pool that is another function's: what a driver checks before it believes in one, and what it then does."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from nodma.driver import BlockDisk, Slot, open_disk, open_slot
from nodma.errors import DeviceFailed, ProbeError, UsageError
from nodma.pci import ConfigSpace
from nodma.pci_function import PciFunction
from nodma.spec.pci import BarFlag, Type0Header
from nodma.spec.profiles import SELF
from nodma.spec.virtio_pci import CfgType, SharedSwiotlbCap

POOL = 1 << 20
KIB = 1 << 10


def region(function: PciFunction) -> SharedSwiotlbCap:
    """The live bytes of capability 10, to lie in."""
    data = function._config.data
    found = ConfigSpace.parse(bytes(data)).virtio(CfgType.SWIOTLB)
    assert found
    return SharedSwiotlbCap(data, found.offset)


def lie(liar: PciFunction, /, **values: Any) -> None:
    capability = region(liar)
    for name, value in values.items():
        setattr(capability, name, value)
    liar._config._initial = bytes(liar._config.data)  # also after a reset


def second_capability(function: PciFunction) -> None:
    """Have a function refer to a second region, of function 2."""
    data = function._config.data
    at = function._express_at  # in the place of that one, which no driver here needs
    second = bytes(region(function))
    data[at : at + 20] = second[:1] + data[at + 1 : at + 2] + second[2:]
    SharedSwiotlbCap(data, at).function = 2
    function._config._initial = bytes(data)


def over_registers(functions: list[PciFunction]) -> None:
    for function in functions[:2]:
        lie(function, bar=0, length=0x8000)


def io_bar(function: PciFunction) -> None:
    Type0Header(function._config.data).bar2 = int(BarFlag.IO)
    function._config._mask[0x18:0x1C] = b"\xe0\xff\xff\xff"
    function._config._initial = bytes(function._config.data)


def disks(slot: Slot, **options: Any) -> list[BlockDisk]:
    return [BlockDisk(slot.bus(number), **options) for number in slot.functions]


def test_disks_in_one_pool_read_and_write_what_is_theirs(slot_of_disks: Any) -> None:
    with open_slot(slot_of_disks.sockets) as slot:
        owner, sharer = disks(slot)
        assert owner.device.window is sharer.device.window
        assert owner.pread(4, 512) == bytes([1, 0, 0, 0])
        assert sharer.pread(4, 512) == bytes([1, 0, 0, 1])
        owner.pwrite(b"o" * 100_000, 1000)
        sharer.pwrite(b"s" * 100_000, 1000)
        assert owner.pread(100_000, 1000) == b"o" * 100_000
        assert sharer.pread(100_000, 1000) == b"s" * 100_000
        owner.close()
        sharer.close()
    assert slot_of_disks.images[1].read_bytes()[1000:1002] == b"ss"


def test_functions_of_a_slot_get_addresses_that_do_not_collide(make_slot: Callable[..., Any]) -> None:
    with make_slot(sharers=3) as served, open_slot(served.sockets) as slot:
        taken = []
        for number in slot.functions:
            bus = slot.bus(number)
            for bar in ConfigSpace.parse(bus.read_config(0, 256), bus.bar_sizes()).bars:
                assert bar.size
                taken.append(range(bar.address, bar.address + bar.size))
        taken.sort(key=lambda span: span.start)
        assert all(below.stop <= above.start for below, above in pairwise(taken))
        assert len(taken) == 5


LIES: dict[str, tuple[Callable[[list[PciFunction]], None], str]] = {
    "a function that is not there": (
        lambda f: lie(f[1], function=5),
        "names the region of function 5, which is not there",
    ),
    "another device": (lambda f: lie(f[1], device=9), "names the region of device 9, function 0, which is not there"),
    "a function that cannot be": (lambda f: lie(f[1], function=8), "breaks SHARE: .* names function 8"),
    "a device, but none of its functions": (lambda f: lie(f[1], device=5, function=SELF), "no function of it"),
    "a circle": (lambda f: lie(f[0], function=1), "names the region of function 1, which names another's itself"),
    "a chain": (lambda f: lie(f[1], function=2), "names the region of function 2, which names another's itself"),
    "itself, without a BAR": (lambda f: lie(f[1], function=1), "in BAR 2, which is not a memory BAR"),
    "a private region": (lambda f: lie(f[0], cap_len=16), "function 0, which does not share it"),
    "no region": (lambda f: lie(f[0], cfg_type=99), "function 0, which has none"),
    "another BAR": (
        lambda f: lie(f[1], bar=0),
        "BAR 0 of function 0, whose region is .* of BAR 2",
    ),
    "beyond the region's end": (lambda f: lie(f[1], offset=4096), "names 0x100000 bytes at 0x1000 of BAR 2"),
    "beyond the BAR's end": (lambda f: lie(f[1], length=POOL * 2), "names 0x200000 bytes at 0x0"),
    "without length": (lambda f: lie(f[1], length=0), "names 0x0 bytes"),
    "one that wraps": (lambda f: lie(f[1], offset=0xFFFFF000, length=0x2000), "names 0x2000 bytes at 0xfffff000"),
    "two regions": (lambda f: second_capability(f[1]), "breaks SHARE: 2 capabilities 10 .* name different regions"),
    "a region over registers": (
        lambda f: over_registers(f),
        "function 0, whose region is to be shared, breaks SW-D2",
    ),
    "an I/O BAR": (
        lambda f: io_bar(f[0]),
        "function 0, whose region is to be shared, breaks SW-D2: .* is not a memory BAR",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_a_capability_that_lies_is_refused_with_a_reason(make_slot: Callable[..., Any], name: str) -> None:
    change, why = LIES[name]
    served = make_slot(sharers=2)
    change(served.functions)
    with served, open_slot(served.sockets) as slot:
        which = 0 if name == "a circle" else 1
        with pytest.raises(ProbeError, match=why):
            BlockDisk(slot.bus(which))
        assert all(function.core.counters.outside == 0 for function in served.functions)


def test_others_go_on_where_one_lies(make_slot: Callable[..., Any]) -> None:
    served = make_slot(sharers=2)
    lie(served.functions[1], function=7)
    with served, open_slot(served.sockets) as slot:
        with pytest.raises(ProbeError):
            BlockDisk(slot.bus(1))
        owner, other = BlockDisk(slot.bus(0)), BlockDisk(slot.bus(2))
        assert (owner.pread(4, 0)[3], other.pread(4, 0)[3]) == (0, 2)


def test_a_function_that_names_itself_by_number_owns_its_region(make_slot: Callable[..., Any]) -> None:
    served = make_slot()
    lie(served.functions[0], device=5, function=0)
    with served, open_slot(served.sockets) as slot:
        owner, sharer = disks(slot)
        assert (owner.pread(4, 0)[3], sharer.pread(4, 0)[3]) == (0, 1)


def test_a_sharer_alone_is_refused(slot_of_disks: Any) -> None:
    with pytest.raises(ProbeError, match="names the region of function 0, which is not there"):
        open_disk(slot_of_disks.sockets[1])


def test_an_owner_alone_has_its_region_for_itself(slot_of_disks: Any) -> None:
    with open_disk(slot_of_disks.sockets[0]) as disk:
        assert disk.device.free[1] > POOL * 3 // 4
        assert disk.pread(4, 512) == bytes([1, 0, 0, 0])


def test_an_owner_that_is_let_go_is_an_error_and_not_a_hang(slot_of_disks: Any) -> None:
    with open_slot(slot_of_disks.sockets) as slot:
        owner, sharer = disks(slot)
        sharer.pread(512, 0)
        owner.close()
        with pytest.raises(DeviceFailed, match="function 0, which owns the pool, was closed"):
            sharer.pread(512, 0)
        assert slot.functions == [1]
        with pytest.raises(UsageError, match="no function 0 in this slot"):
            slot.bus(0)


def test_an_owner_whose_server_ends_takes_nobody_along(make_slot: Callable[..., Any]) -> None:
    with make_slot() as served, open_slot(served.sockets) as slot:
        _, sharer = disks(slot)
        sharer.pwrite(b"before", 0)
        served.served[0].loop.stop()
        for _ in range(100):
            sharer.pwrite(b"after!", 512)
        assert sharer.pread(6, 0) + sharer.pread(6, 512) == b"beforeafter!"


def test_a_pool_too_small_for_its_reservations_is_refused(slot_of_disks: Any) -> None:
    why = "2 reservations of 524288 bytes leave nothing to share"
    with open_slot(slot_of_disks.sockets, reservation=POOL // 2) as slot, pytest.raises(UsageError, match=why):
        BlockDisk(slot.bus(0))


def test_each_function_is_counted_by_itself(slot_of_disks: Any) -> None:
    with open_slot(slot_of_disks.sockets) as slot:
        owner, sharer = disks(slot)
        owner.pwrite(bytes(64 * KIB), 0)
        sharer.pread(4 * KIB, 0)
        assert (owner.statistics.bytes_in, owner.statistics.bytes_out) == (64 * KIB, 0)
        assert (sharer.statistics.bytes_in, sharer.statistics.bytes_out) == (0, 4 * KIB)
        assert owner.statistics.used == sharer.statistics.used == 0


def test_a_flood_leaves_a_neighbour_its_reservation(slot_of_disks: Any) -> None:
    """The flooding disk has as much in flight as it gets; what the other has reserved, it always gets at once."""
    with open_slot(slot_of_disks.sockets, reservation=256 * KIB) as slot:
        flood, quiet = disks(slot, depth=128)
        stop = threading.Event()

        def drown() -> None:
            buffers = [bytearray(16 * KIB) for _ in range(128)]
            while not stop.is_set():
                for buffer in buffers:
                    flood.submit_read(0, buffer)
                flood.kick()
                while flood.in_flight:
                    flood.wait()

        thread = threading.Thread(target=drown)
        thread.start()
        try:
            for at in range(200):
                assert quiet.pread(4 * KIB, at * 4 * KIB % POOL)[3] == 1
        finally:
            stop.set()
            thread.join(timeout=30)
        assert flood.statistics.full > 0
        assert flood.statistics.peak > flood.statistics.slots  # it had more than was its own
        assert quiet.statistics.full == 0


def test_what_one_disk_filled_another_writes_without_a_copy(slot_of_disks: Any) -> None:
    with open_slot(slot_of_disks.sockets) as slot:
        source, target = disks(slot)
        length = 48 * KIB
        with source.read_mapping(0, length) as filled:
            target.write_mapping(filled, 512 * KIB)
        target.flush()
        for disk in (source, target):
            assert (disk.statistics.bytes_in, disk.statistics.bytes_out) == (0, 0)
            assert disk.statistics.used == 0
    image = slot_of_disks.images
    assert image[1].read_bytes()[512 * KIB : 512 * KIB + length] == image[0].read_bytes()[:length]


def test_slots_of_another_pool_are_not_handed_over(slot_of_disks: Any, served: Any) -> None:
    with open_slot(slot_of_disks.sockets) as slot, open_disk(served.path) as stranger:
        source, target = disks(slot)
        with source.read_mapping(0, 512) as filled, pytest.raises(UsageError, match="another disk's pool"):
            stranger.write_mapping(filled, 0)
        with pytest.raises(UsageError, match="these slots were released"):
            target.write_mapping(filled, 0)
        with pytest.raises(UsageError, match="whole sectors"):
            source.read_mapping(1, 512)
        with pytest.raises(UsageError, match="lie outside the disk"):
            source.read_mapping(source.size, 512)


def test_a_read_that_fails_keeps_no_slots(slot_of_disks: Any) -> None:
    with open_slot(slot_of_disks.sockets) as slot:
        source, _ = disks(slot)
        os.truncate(slot_of_disks.images[0], 0)
        with pytest.raises(OSError, match="I/O error"):
            source.read_mapping(0, 4096)
        assert source.statistics.used == 0


def test_what_is_no_slot_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not the address of a slot"):
        open_slot("nonsense")
    with pytest.raises(UsageError, match="a slot has 1 to 8 functions"):
        open_slot([])
    with pytest.raises(UsageError, match="is the server running"):
        open_slot([tmp_path / "nobody"])
