"""Configuration space: what a driver can write, and how it finds the size of a BAR."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodma.pci import ConfigSpace as Decoded
from nodma.pci_function import PciFunction
from nodma.pci_function.config_space import ConfigSpace, MemoryBar
from nodma.spec.pci import CapId, Command, MsixCapability, Type0Header
from nodma.spec.profiles import SWIOTLB
from nodma.spec.vfio_user import Region
from nodma.spec.virtio_pci import CfgType

WINDOW = 1 << 20


@pytest.fixture
def space() -> ConfigSpace:
    bars = (MemoryBar(0, 32 << 10), MemoryBar(2, WINDOW, is64=True, prefetchable=True))
    return ConfigSpace(Type0Header.new(vendor_id=0x1AF4), bars, [MsixCapability.new(cap_id=CapId.MSIX, control=4)])


def u32(space: ConfigSpace, offset: int) -> int:
    return int.from_bytes(space.read(offset, 4), "little")


def test_bars_are_sized_as_pci_has_it(space: ConfigSpace) -> None:
    for offset in (0x10, 0x14, 0x18, 0x1C, 0x20, 0x24, 0x30):
        space.write(offset, b"\xff" * 4)
    assert u32(space, 0x10) == 2**32 - (32 << 10)
    assert u32(space, 0x14) == 0
    assert u32(space, 0x18) == 2**32 - WINDOW | 0xC  # 64-bit, prefetchable
    assert u32(space, 0x1C) == 2**32 - 1
    assert (u32(space, 0x20), u32(space, 0x24), u32(space, 0x30)) == (0, 0, 0)


def test_an_address_counts_only_while_memory_is_decoded(space: ConfigSpace) -> None:
    space.write(0x18, (0x12_3450_0000).to_bytes(8, "little"))
    assert space.bar_address(2) is None
    space.write(4, int(Command.MEMORY).to_bytes(2, "little"))
    assert space.bar_address(2) == 0x12_3450_0000
    assert space.bar_address(0) is None  # none was assigned


@given(st.lists(st.tuples(st.integers(0, 4095), st.binary(min_size=1, max_size=8)), max_size=30))
def test_what_is_not_writable_stays_as_it_is(writes: list[tuple[int, bytes]]) -> None:
    bars = (MemoryBar(0, 32 << 10), MemoryBar(2, WINDOW, is64=True, prefetchable=True))
    header = Type0Header.new(vendor_id=0x1AF4, device_id=0x1042, revision_id=1)
    space = ConfigSpace(header, bars, [MsixCapability.new(cap_id=CapId.MSIX, control=4)])
    before = bytes(space.data)
    for offset, data in writes:
        space.write(offset, data[: 4096 - offset])
    writable = {*range(4, 6), 0x0C, *range(0x10, 0x14), *range(0x18, 0x20), 0x3C, *range(0x42, 0x44)}
    changed = {at for at in range(4096) if space.data[at] != before[at]}
    assert changed <= writable
    assert u32(space, 0x40) & 0x3FFF_FFFF == u32(space, 0x40) & ~0xC000_0000
    assert space.header.capabilities == 0x40
    space.reset()
    assert bytes(space.data) == before


def test_capabilities_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="the capabilities do not fit"):
        ConfigSpace(Type0Header.new(), (), [MsixCapability.new() for _ in range(20)])


@pytest.mark.parametrize("pool", [64 << 10, 16 << 20, 4 << 30])
def test_the_function_presents_what_the_profile_asks_for(make_function: Callable[..., PciFunction], pool: int) -> None:
    function = make_function(pool=pool)
    sizes = {bar: function.regions[bar].size for bar in (0, 2)}
    space = Decoded.parse(function.read(Region.CONFIG, 0, 4096), sizes)
    assert (space.header.vendor_id, space.header.device_id) == (0x1AF4, 0x1042)
    region = space.virtio(CfgType.SWIOTLB)
    assert region
    assert (region.bar, region.offset_in_bar, region.length) == (2, 0, min(pool, SWIOTLB.max_region))
    assert len(region.raw) == 16
    bar = space.bar(2)
    assert bar
    assert (bar.is64, bar.prefetchable, bar.size) == (True, True, pool)
    for cfg_type in (CfgType.COMMON, CfgType.NOTIFY, CfgType.ISR, CfgType.DEVICE, CfgType.PCI):
        assert space.virtio(cfg_type), cfg_type
    assert space.find(CapId.MSIX)
    assert space.find(CapId.EXPRESS)
    assert not space.broken
