"""The profile dmb on the device's end: offsets instead of addresses, and none of them 0 (DMB-V1 to V7)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodma.device import BlockDevice
from nodma.device.image import Image
from nodma.errors import UsageError
from nodma.pci import ConfigSpace
from nodma.pci_function import PciFunction
from nodma.ring import RingLayout
from nodma.spec import dmb
from nodma.spec.profiles import DMB, Policy
from nodma.spec.vfio_user import Region
from nodma.spec.virtio import Feature, Status
from nodma.spec.virtio_pci import CfgType

POOL = 1 << 20
LAYOUT = RingLayout.packed_at(0x1000, 16)
HEADER, DATA, STATUS = 0x8000, 0x9000, 0x8010


@pytest.fixture
def disk(make_disk: Callable[..., Any]) -> Any:
    return make_disk(LAYOUT, profile=DMB)


def test_a_disk_works_by_offsets(disk: Any) -> None:
    disk.start(base=0)
    disk.offer_read(base=0)
    disk.work()
    assert (disk.answer, disk.function.window.bytes[STATUS]) == ((4).to_bytes(4, "little"), 0)


def test_the_region_is_shared_memory_that_the_common_configuration_names(disk: Any) -> None:
    space = ConfigSpace.parse(disk.function.read(Region.CONFIG, 0, 4096))
    region = space.virtio(CfgType.SHARED_MEMORY)
    assert region
    assert (region.bar, region.offset_in_bar, region.length, len(region.raw)) == (2, 0, POOL, 24)
    assert region.id == dmb.SHM_ID == disk.registers.get(dmb.DmbCommonCfg.dmb_shm_id)
    common = space.virtio(CfgType.COMMON)
    assert common
    assert common.length == 66
    assert not space.virtio(CfgType.SWIOTLB)


def test_what_goes_with_the_feature_is_offered(disk: Any) -> None:
    for feature in (Feature.DMB, Feature.VERSION_1, Feature.ACCESS_PLATFORM):
        assert disk.core.offered & feature.mask
    assert not disk.core.offered & (Feature.SWIOTLB.mask | Feature.ORDER_PLATFORM.mask)


def test_the_largest_pool_is_told_of_whole(image: Any) -> None:
    with Image(image) as opened:
        function = PciFunction(BlockDevice(opened, pool=4 << 30), pool=4 << 30, profile=DMB)
        region = ConfigSpace.parse(function.read(Region.CONFIG, 0, 4096)).virtio(CfgType.SHARED_MEMORY)
        function.close()
    assert region
    assert region.length == 4 << 30


@pytest.mark.parametrize(
    ("without", "why"), [(Feature.DMB, "which this device's policy requires .DMB-V6"), (Feature.ACCESS_PLATFORM, "D1")]
)
def test_a_driver_without_what_is_needed_is_refused(disk: Any, without: Feature, why: str) -> None:
    disk.registers.place()
    assert not disk.registers.negotiate(disk.core.offered & ~without.mask) & Status.FEATURES_OK
    assert re.search(why, disk.core.reason)


def test_nobody_may_hope(make_disk: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match=r"policy hopeful is not available with profile dmb.*DMB-V6"):
        make_disk(profile=DMB, policy=Policy.HOPEFUL)


@pytest.mark.parametrize("base", [0, POOL - 0x1000, POOL, 1 << 40, 2**64 - 0x2000])
def test_a_queue_that_is_not_inside_is_caught_and_not_followed(disk: Any, base: int) -> None:
    layout = RingLayout.packed_at(base, 256)
    disk.registers.place()
    disk.registers.negotiate()
    disk.registers.enable(layout, base=0)
    assert disk.registers.status & Status.DEVICE_NEEDS_RESET
    assert disk.core.counters.outside == 1
    assert "is outside the window [0x1, 0x100000)" in disk.core.reason


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 512), (POOL - 256, 512), (POOL, 1), (2**64 - 256, 512), (0x10_0000_0000, 512)]
)
def test_a_buffer_that_is_not_inside_is_caught_and_not_followed(disk: Any, offset: int, length: int) -> None:
    disk.start(base=0)
    disk.ring.add([(HEADER, 16)], [(offset, length), (STATUS, 1)], "outside")
    disk.ring.publish()
    disk.registers.notify()
    disk.work()
    assert disk.registers.status & Status.DEVICE_NEEDS_RESET
    assert disk.core.counters.outside == 1
    assert f"buffer of {length} bytes at {offset:#x}" in disk.core.reason
    assert not disk.ring.pending()


def test_offsets_stay_what_they_are_wherever_the_bar_is(disk: Any) -> None:
    """An address is never taken for one of the bus (DMB-V3)."""
    disk.start(base=0)
    for base, command in ((0x77_0000_0000, 2), (0x77_0000_0000, 0), (0x10_0000_0000, 2)):
        disk.registers.place(base, command=command)
        disk.offer_read(base=0)
        disk.work()
        assert disk.ring.reap(1) == [("read", 513)]


def test_a_reset_leaves_the_region_where_and_what_it_was(disk: Any) -> None:
    """Queues may survive it (DMB-V7)."""
    disk.start(base=0)
    before = disk.function.read(Region.CONFIG, 0, 256)
    disk.function.window.view(0xA000, 4)[:] = b"keep"
    disk.function.reset()
    assert disk.function.read(Region.CONFIG, 0, 256) == before
    assert disk.function.window.view(0xA000, 4).tobytes() == b"keep"


@given(data=st.data())
def test_only_offsets_from_1_to_the_end_are_ever_touched(make_disk: Callable[..., Any], data: st.DataObject) -> None:
    """Nothing outside is touched, whatever the address and the length (DMB-V4, DMB-V5)."""
    disk = make_disk(LAYOUT, profile=DMB)
    disk.start(base=0)
    near = st.sampled_from([0, 1, 2, POOL - 1, POOL, 1 << 32, 2**64 - 1]).map(lambda edge: (edge, 3))
    around = near.flatmap(lambda of: st.integers(max(0, of[0] - of[1]), min(2**64 - 1, of[0] + of[1])))
    offset, length = data.draw(around), data.draw(st.integers(1, 4096))
    disk.ring.add([(HEADER, 16)], [(offset, length), (STATUS, 1)], "any")
    disk.ring.publish()
    disk.registers.notify()
    disk.work()
    inside = offset >= 1 and offset + length <= POOL
    assert bool(disk.registers.status & Status.DEVICE_NEEDS_RESET) is not inside
    assert disk.core.counters.outside == (not inside)
