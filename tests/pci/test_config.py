"""Configuration spaces, decoded: whatever the bytes are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodma.pci import ConfigSpace, VirtioCapability, audit
from nodma.spec.layout import Layout
from nodma.spec.pci import (
    BAR_COUNT,
    CONFIG_SIZE,
    EXTENDED_CONFIG_SIZE,
    FIRST_CAPABILITY,
    AfCapability,
    AfFeature,
    BarFlag,
    Capability,
    CapId,
    Command,
    ExtCapId,
    ExtendedCapability,
    HeaderType,
    MsiCapability32,
    MsiCapability64,
    MsiControl,
    PmCapability,
    SerialNumberCapability,
    Type0Header,
    VendorCapability,
)
from nodma.spec.profiles import SELF
from nodma.spec.virtio import DeviceType
from nodma.spec.virtio_pci import (
    MODERN_DEVICE_BASE,
    VIRTIO_VENDOR,
    CfgType,
    SharedSwiotlbCap,
    VirtioPciCap,
    VirtioPciCap64,
    VirtioPciVendorCap,
)

SIZES = {0: 32 << 10, 2: 16 << 20}


def test_good_device(assemble: Callable[..., bytes], good: dict[str, Layout]) -> None:
    space = ConfigSpace.parse(assemble(list(good.values())), SIZES)
    assert space.is_virtio
    assert space.answers
    assert space.device_type == DeviceType.BLOCK
    assert not space.truncated
    assert not space.broken
    assert [cap.cap_id for cap in space.capabilities] == [CapId.MSIX] + [CapId.VENDOR] * 6
    assert [(bar.index, bar.address, bar.is64, bar.prefetchable, bar.size) for bar in space.bars] == [
        (0, 0xFEBD0000, False, False, 32 << 10),
        (2, 0x40 << 32, True, True, 16 << 20),
    ]
    notify = space.virtio(CfgType.NOTIFY)
    assert notify is not None
    assert (notify.bar, notify.offset_in_bar, notify.length, notify.notify_off_multiplier) == (0, 0x3000, 4, 4)


def test_shared_region(assemble: Callable[..., bytes], virtio: Callable[..., VendorCapability]) -> None:
    own = virtio(CfgType.SWIOTLB, VirtioPciCap, bar=2, length=4096)
    other = virtio(CfgType.SWIOTLB, SharedSwiotlbCap, bar=2, length=4096, device=3, function=1)
    found = ConfigSpace.parse(assemble([own, other])).virtio_all(CfgType.SWIOTLB)
    assert [cap.owner for cap in found] == [(SELF, SELF), (3, 1)]


def test_shared_memory_has_64_bits(assemble: Callable[..., bytes], virtio: Callable[..., VendorCapability]) -> None:
    cap = virtio(CfgType.SHARED_MEMORY, VirtioPciCap64, bar=2, offset=1, offset_hi=2, length=3, length_hi=4, id=5)
    found = ConfigSpace.parse(assemble([cap])).virtio(CfgType.SHARED_MEMORY)
    assert found is not None
    assert (found.offset_in_bar, found.length, found.id) == (2 << 32 | 1, 4 << 32 | 3, 5)


def test_vendor_data_is_no_structure_in_a_bar(
    assemble: Callable[..., bytes], virtio: Callable[..., VendorCapability]
) -> None:
    cap = virtio(CfgType.VENDOR, VirtioPciVendorCap, vendor_id=0x1234, cap_len=12)
    found = ConfigSpace.parse(assemble([cap])).find(CapId.VENDOR)
    assert found is not None
    assert not isinstance(found, VirtioCapability)
    assert isinstance(found.structure, VirtioPciVendorCap)
    assert found.structure.vendor_id == 0x1234
    assert len(found.raw) == 12


def test_reserved_bar_numbers_are_passed_over(
    assemble: Callable[..., bytes], virtio: Callable[..., VendorCapability]
) -> None:
    caps = [virtio(CfgType.ISR, VirtioPciCap, bar=bar, length=1) for bar in (BAR_COUNT, 0)]
    found = ConfigSpace.parse(assemble(caps)).virtio(CfgType.ISR)
    assert found is not None
    assert found.bar == 0


def test_capabilities_of_pci(assemble: Callable[..., bytes]) -> None:
    parts = [
        PmCapability.new(cap_id=CapId.PM),
        MsiCapability32.new(cap_id=CapId.MSI, data=7),
        MsiCapability64.new(cap_id=CapId.MSI, control=MsiControl.ADDRESS_64, data=8),
        AfCapability.new(cap_id=CapId.AF, features=AfFeature.FLR),
    ]
    space = ConfigSpace.parse(assemble(parts))
    assert [type(cap.structure) for cap in space.capabilities] == [type(part) for part in parts]
    msi64 = space.capabilities[2].structure
    assert isinstance(msi64, MsiCapability64)
    assert msi64.data == 8


@pytest.mark.parametrize(
    ("vendor", "device", "is_virtio", "device_type"),
    [
        (VIRTIO_VENDOR, MODERN_DEVICE_BASE + 2, True, 2),
        (VIRTIO_VENDOR, 0x1001, True, 9),
        (VIRTIO_VENDOR, 0x1110, False, None),
        (0x8086, MODERN_DEVICE_BASE + 2, False, None),
    ],
    ids=["modern", "transitional", "ivshmem", "another vendor"],
)
def test_what_is_virtio(
    assemble: Callable[..., bytes], vendor: int, device: int, is_virtio: bool, device_type: int | None
) -> None:
    space = ConfigSpace.parse(assemble([], vendor_id=vendor, device_id=device, subsystem_id=9))
    assert (space.is_virtio, space.device_type) == (is_virtio, device_type)


def test_nothing_answers() -> None:
    space = ConfigSpace.parse(b"\xff" * CONFIG_SIZE)
    assert not space.answers
    assert not space.bars
    assert not space.capabilities
    assert not space.broken


@pytest.mark.parametrize("length", [FIRST_CAPABILITY, 0x48])
def test_truncated(assemble: Callable[..., bytes], good: dict[str, Layout], length: int) -> None:
    space = ConfigSpace.parse(assemble(list(good.values()))[:length])
    assert space.truncated
    assert len(space.capabilities) == (length > FIRST_CAPABILITY)


def test_loop(assemble: Callable[..., bytes], good: dict[str, Layout]) -> None:
    raw = bytearray(assemble([good["msix"]]))
    raw[FIRST_CAPABILITY + Capability.cap_next.offset] = FIRST_CAPABILITY
    space = ConfigSpace.parse(bytes(raw))
    assert len(space.capabilities) == 1
    assert "loop" in space.broken[0]


@pytest.mark.parametrize(("pointer", "said"), [(0x10, "into the header"), (0x80, "nothing answers")])
def test_bad_pointers(assemble: Callable[..., bytes], pointer: int, said: str) -> None:
    raw = bytearray(assemble([], capabilities=pointer))
    raw[0x80] = 0xFF
    space = ConfigSpace.parse(bytes(raw))
    assert not space.capabilities
    assert said in space.broken[0]


def test_bars_of_a_bridge_are_two(assemble: Callable[..., bytes]) -> None:
    space = ConfigSpace.parse(assemble([], header_type=HeaderType.BRIDGE, bar1=0x1000, bar4=0x1000))
    assert [bar.index for bar in space.bars] == [0, 1]


def test_io_bar(assemble: Callable[..., bytes]) -> None:
    space = ConfigSpace.parse(assemble([], command=Command.IO, bar0=0xC000 | BarFlag.IO), SIZES)
    assert (space.bars[0].kind, space.bars[0].address) == ("io", 0xC000)


def test_upper_half_is_no_bar_of_its_own(assemble: Callable[..., bytes]) -> None:
    space = ConfigSpace.parse(assemble([]))
    assert space.bar(3) is None
    assert not space.may_have_bar(3)
    assert space.may_have_bar(4)
    assert not ConfigSpace.parse(space.raw, SIZES).may_have_bar(4)


def extended(at_next: int, cap_id: int) -> int:
    return at_next << 20 | 1 << 16 | cap_id


def test_extended_capabilities(assemble: Callable[..., bytes]) -> None:
    raw = bytearray(assemble([], EXTENDED_CONFIG_SIZE))
    serial = SerialNumberCapability.new(header=extended(0x200, ExtCapId.SERIAL_NUMBER), low=1, high=2)
    raw[0x100:0x10C] = bytes(serial)
    raw[0x200:0x204] = bytes(ExtendedCapability.new(header=extended(0x100, ExtCapId.ATS)))
    space = ConfigSpace.parse(bytes(raw))
    assert [(cap.offset, cap.cap_id) for cap in space.extended] == [
        (0x100, ExtCapId.SERIAL_NUMBER),
        (0x200, ExtCapId.ATS),
    ]
    assert "loop" in space.broken[0]


@given(st.binary(max_size=EXTENDED_CONFIG_SIZE + 16), st.none() | st.dictionaries(st.integers(0, 5), st.integers(0)))
def test_any_bytes(raw: bytes, sizes: dict[int, int] | None) -> None:
    space = ConfigSpace.parse(raw, sizes)
    audit(space, 0)
    assert len(space.capabilities) <= (CONFIG_SIZE - FIRST_CAPABILITY) // 4
    assert len(space.extended) <= (EXTENDED_CONFIG_SIZE - CONFIG_SIZE) // 4
    assert len(space.bars) <= BAR_COUNT


@given(st.data())
def test_any_list(data: st.DataObject) -> None:
    """Lists that lead to random places: they end."""
    raw = bytearray(data.draw(st.binary(min_size=CONFIG_SIZE, max_size=CONFIG_SIZE)))
    header = Type0Header(raw)
    header.vendor_id, header.device_id = VIRTIO_VENDOR, MODERN_DEVICE_BASE + 2
    header.status, header.header_type = 0x10, 0
    for at in range(FIRST_CAPABILITY, CONFIG_SIZE, 4):
        if data.draw(st.booleans()):
            raw[at] = CapId.VENDOR
    space = ConfigSpace.parse(bytes(raw))
    audit(space, (1 << 64) - 1)
    assert len({cap.offset for cap in space.capabilities}) == len(space.capabilities)
