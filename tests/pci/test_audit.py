"""Each finding, by one thing wrong with a device that is else good."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nodma.pci import ConfigSpace, Finding, audit
from nodma.spec.dmb import SHM_ID, DmbCommonCfg
from nodma.spec.layout import Layout
from nodma.spec.pci import BAR_COUNT, EXPANSION_ROM, BarFlag, Capability, Type0Header, VendorCapability
from nodma.spec.virtio import Feature
from nodma.spec.virtio_pci import (
    CfgType,
    CommonCfg,
    SharedSwiotlbCap,
    VirtioPciCap,
    VirtioPciCap64,
    VirtioPciNotifyCap,
)

SIZES = {0: 32 << 10, 2: 16 << 20}
FEATURES = Feature.VERSION_1.mask | Feature.ACCESS_PLATFORM.mask | Feature.SWIOTLB.mask
PREFETCHABLE = BarFlag.TYPE_64 | BarFlag.PREFETCH

Assemble = Callable[..., bytes]
Good = dict[str, Layout]


def findings(raw: bytes, features: int | None = FEATURES, sizes: dict[int, int] | None = SIZES) -> list[Finding]:
    return audit(ConfigSpace.parse(raw, sizes), features)


def only(found: list[Finding], clause: str, severity: str, words: str) -> None:
    """Check that exactly one thing was found."""
    assert [(finding.clause, finding.severity) for finding in found] == [(clause, severity)], found
    assert words in found[0].message


def test_good_device(assemble: Assemble, good: Good) -> None:
    assert findings(assemble(list(good.values()))) == []


def test_good_device_of_which_less_is_known(assemble: Assemble, good: Good) -> None:
    """Nothing is said to be missing that may only not be visible."""
    raw = assemble(list(good.values()), bar0=0)
    assert findings(raw, None, None) == []
    assert findings(raw[:64], FEATURES, None) == []


@pytest.mark.parametrize(
    ("part", "clause"),
    [("common", "4.1.4.3.1"), ("notify", "4.1.4.4.1"), ("isr", "4.1.4.5.1"), ("pci", "4.1.4.9.1")],
)
def test_missing_structure(assemble: Assemble, good: Good, part: str, clause: str) -> None:
    del good[part]
    only(findings(assemble(list(good.values()))), clause, "error", "must present one")


WRONG: list[tuple[str, dict[str, int], str, str, str]] = [
    ("common", {"offset": 2}, "4.1.4.3.1", "error", "not 4-byte aligned"),
    ("common", {"length": 55}, "4.1.4.3.1", "error", "too few for its registers"),
    ("device", {"offset": 0x2002}, "4.1.4.6.1", "error", "not 4-byte aligned"),
    ("device", {"bar": 1}, "4.1.4", "error", "names BAR 1, which does not exist"),
    ("device", {"bar": 3}, "4.1.4", "error", "names BAR 3, which does not exist"),
    ("device", {"bar": BAR_COUNT}, "4.1.4", "warning", "which is reserved"),
    ("device", {"offset": 0x7FF0}, "4.1.4", "error", "reaches from 0x7ff0 to 0x802c in BAR 0"),
    ("device", {"length": 0}, "4.1.4", "error", "has no length"),
    ("device", {"cap_len": 12}, "4.1.4", "error", "has 12 bytes, fewer than 16"),
    ("notify", {"notify_off_multiplier": 3}, "4.1.4.4.1", "error", "multiplier 3"),
    ("notify", {"notify_off_multiplier": 1}, "4.1.4.4.1", "error", "multiplier 1"),
    ("notify", {"offset": 0x3001}, "4.1.4.4.1", "error", "not 2-byte aligned"),
    ("notify", {"length": 1}, "4.1.4.4.1", "error", "fewer than 2"),
    ("pci", {"cap_len": 16}, "4.1.4", "error", "has 16 bytes, fewer than 20"),
    ("swiotlb", {"length": (16 << 20) + 1}, "SW-D2", "error", "of 0x1000000 bytes"),
    ("swiotlb", {"length": 0}, "SW-D2", "error", "has no length"),
    ("swiotlb", {"bar": 5}, "SW-D2", "error", "names BAR 5, which does not exist"),
]


@pytest.mark.parametrize(("part", "values", "clause", "severity", "words"), WRONG)
def test_wrong_structure(
    assemble: Assemble, good: Good, part: str, values: dict[str, int], clause: str, severity: str, words: str
) -> None:
    for name, value in values.items():
        setattr(good[part], name, value)
    only(findings(assemble(list(good.values()))), clause, severity, words)


def test_unknown_types_are_not_judged(assemble: Assemble, good: Good, virtio: Callable[..., VendorCapability]) -> None:
    good["other"] = virtio(99, VirtioPciCap, bar=5, length=0, cap_len=8)
    assert findings(assemble(list(good.values()))) == []


def test_pci_cfg_may_be_aimed_anywhere(assemble: Assemble, good: Good) -> None:
    cap: Any = good["pci"]
    cap.bar, cap.offset, cap.length = 0xFF, 0xFFFFFFFF, 0xFFFFFFFF
    assert findings(assemble(list(good.values()))) == []


def test_notify_without_its_multiplier(assemble: Assemble, good: Good, virtio: Callable[..., VendorCapability]) -> None:
    good["notify"] = virtio(CfgType.NOTIFY, VirtioPciNotifyCap, offset=0x3000, length=4, cap_len=VirtioPciCap.size)
    only(findings(assemble(list(good.values()))), "4.1.4", "error", "fewer than 20")


def test_feature_without_region(assemble: Assemble, good: Good) -> None:
    del good["swiotlb"]
    only(findings(assemble(list(good.values()))), "SW-V3", "error", "no capability 10")


def test_region_without_feature(assemble: Assemble, good: Good) -> None:
    found = findings(assemble(list(good.values())), FEATURES & ~Feature.SWIOTLB.mask)
    only(found, "SW-V2", "warning", "is not offered")


@pytest.mark.parametrize(
    ("feature", "clause", "severity"),
    [(Feature.VERSION_1, "6.1", "error"), (Feature.ACCESS_PLATFORM, "SW-P1", "warning")],
)
def test_feature_not_offered(assemble: Assemble, good: Good, feature: Feature, clause: str, severity: str) -> None:
    only(findings(assemble(list(good.values())), FEATURES & ~feature.mask), clause, severity, "is not offered")


def test_two_regions(assemble: Assemble, good: Good, virtio: Callable[..., VendorCapability]) -> None:
    half = 8 << 20
    good["swiotlb"] = virtio(CfgType.SWIOTLB, VirtioPciCap, bar=2, length=half)
    good["other"] = virtio(CfgType.SWIOTLB, VirtioPciCap, bar=2, offset=half, length=half)
    only(findings(assemble(list(good.values()))), "SHARE", "error", "name different regions")


def test_the_same_region_twice(assemble: Assemble, good: Good) -> None:
    good["other"] = SharedSwiotlbCap.new(
        **dict(good["swiotlb"].items()) | {"cap_len": 20, "device": 0xFF, "function": 2}
    )
    good["swiotlb"] = SharedSwiotlbCap.new(**dict(good["other"].items()))
    only(findings(assemble(list(good.values()))), "SW-D2", "warning", "2 capabilities 10")


@pytest.mark.parametrize(
    ("values", "severity", "words"),
    [
        ({"device": 3, "function": 0xFF}, "error", "names device 3 but no function of it"),
        ({"function": 8}, "error", "names function 8, expected 0 to 7"),
        ({"device": 32, "function": 0}, "error", "names device 32, expected 0 to 31"),
        ({"function": 1, "padding2": b"\1\0"}, "warning", "0100 in its padding, expected zeros"),
    ],
)
def test_a_reference_that_leads_nowhere(
    assemble: Assemble, good: Good, values: dict[str, Any], severity: str, words: str
) -> None:
    good["swiotlb"] = SharedSwiotlbCap.new(**dict(good["swiotlb"].items()) | {"cap_len": 20} | values)
    only(findings(assemble(list(good.values()))), "SHARE", severity, words)


@pytest.mark.parametrize(
    ("values", "words"),
    [({"offset": 0x800, "length": 1 << 20}, "not page-aligned"), ({"length": 4096}, "fewer than 65536")],
)
def test_a_region_that_cannot_be_mapped_or_used(
    assemble: Assemble, good: Good, values: dict[str, int], words: str
) -> None:
    for name, value in values.items():
        setattr(good["swiotlb"], name, value)
    only(findings(assemble(list(good.values()))), "SW-D2", "error", words)


class TestDmb:
    """VIRTIO_F_DMB: which region is its, and what goes with it."""

    features = Feature.VERSION_1.mask | Feature.ACCESS_PLATFORM.mask | Feature.DMB.mask

    @pytest.fixture
    def good(self, good: Good, virtio: Callable[..., VendorCapability]) -> Good:
        del good["swiotlb"]
        good["common"].length = DmbCommonCfg.size  # type: ignore[attr-defined]
        good["dmb"] = virtio(CfgType.SHARED_MEMORY, VirtioPciCap64, bar=2, length=16 << 20, id=SHM_ID)
        return good

    def found(self, raw: bytes, features: int | None = None, shm_id: int | None = SHM_ID) -> list[Finding]:
        return audit(ConfigSpace.parse(raw, SIZES), features or self.features, shm_id)

    def test_good(self, assemble: Assemble, good: Good) -> None:
        raw = assemble(list(good.values()))
        assert self.found(raw) == []
        assert self.found(raw, shm_id=SHM_ID | 0x1200) == []  # 8 bits count
        assert self.found(raw, shm_id=None) == []

    def test_beside_other_shared_memory(
        self, assemble: Assemble, good: Good, virtio: Callable[..., VendorCapability]
    ) -> None:
        good["dax"] = virtio(CfgType.SHARED_MEMORY, VirtioPciCap64, bar=0, offset=0x7000, length=16, id=0)
        assert self.found(assemble(list(good.values()))) == []

    def test_no_region_has_the_id(self, assemble: Assemble, good: Good) -> None:
        only(self.found(assemble(list(good.values())), shm_id=7), "DMB-V2", "error", "0 shared memory regions have")

    def test_two_have_it(self, assemble: Assemble, good: Good) -> None:
        good["other"] = type(good["dmb"]).new(**dict(good["dmb"].items()) | {"bar": 0, "offset": 0x7000})
        found = self.found(assemble(list(good.values())))
        assert ("DMB-V2", "2 shared memory regions have its id 219") in [
            (finding.clause, finding.message.split(", and ")[-1]) for finding in found
        ]

    def test_without_access_platform(self, assemble: Assemble, good: Good) -> None:
        found = self.found(assemble(list(good.values())), self.features & ~Feature.ACCESS_PLATFORM.mask)
        assert ("DMB-V1", "error") in [(finding.clause, finding.severity) for finding in found]

    def test_no_room_for_the_register(self, assemble: Assemble, good: Good) -> None:
        good["common"].length = CommonCfg.size  # type: ignore[attr-defined]
        only(self.found(assemble(list(good.values()))), "DMB-V2", "error", "too short for the register dmb_shm_id")

    def test_over_something_else(self, assemble: Assemble, good: Good) -> None:
        good["dmb"].bar, good["dmb"].length = 0, 1 << 15  # type: ignore[attr-defined]
        found = self.found(assemble(list(good.values())))
        assert any(finding.clause == "DMB-V4" and "overlaps" in finding.message for finding in found)


def test_sharing_extension_cut_short(assemble: Assemble, good: Good) -> None:
    good["swiotlb"] = SharedSwiotlbCap.new(**dict(good["swiotlb"].items()))
    good["swiotlb"].cap_len = 18  # type: ignore[attr-defined]
    only(findings(assemble(list(good.values()))), "SHARE", "warning", "has 18 bytes")


def test_region_of_another_function_is_not_judged(assemble: Assemble, good: Good) -> None:
    values = dict(good["swiotlb"].items()) | {"cap_len": SharedSwiotlbCap.size, "device": 2, "function": 0, "bar": 5}
    good["swiotlb"] = SharedSwiotlbCap.new(**values)
    assert findings(assemble(list(good.values()))) == []


@pytest.mark.parametrize("flags", [BarFlag.TYPE_64, BarFlag.PREFETCH], ids=["not prefetchable", "32-bit"])
def test_region_that_may_be_mapped_uncached(assemble: Assemble, good: Good, flags: int) -> None:
    raw = assemble(list(good.values()), bar2=flags, bar3=0)
    only(findings(raw), "SW-D3", "warning", "not 64-bit prefetchable")


def test_region_in_io_space(assemble: Assemble, good: Good) -> None:
    raw = assemble(list(good.values()), bar2=BarFlag.IO, bar3=0)
    only(findings(raw), "SW-D2", "error", "not a memory BAR")


@pytest.mark.parametrize(
    ("part", "field", "value", "words"),
    [
        ("device", "bar", 2, "overlaps capability 4 (DEVICE)"),
        ("msix", "table", 2, "overlaps the MSI-X table"),
        ("msix", "pba", 2, "overlaps the MSI-X pending bits"),
    ],
)
def test_overlap(assemble: Assemble, good: Good, part: str, field: str, value: int, words: str) -> None:
    setattr(good[part], field, value)
    only(findings(assemble(list(good.values()))), "SW-D2", "error", words)


def test_capability_that_reaches_into_the_next(assemble: Assemble, good: Good) -> None:
    good["device"].cap_len = 20  # type: ignore[attr-defined]
    only(findings(assemble(list(good.values()))), "PCI 6.7", "warning", "into the capability at")


def test_broken_list(assemble: Assemble, good: Good) -> None:
    raw = bytearray(assemble(list(good.values())))
    first = raw[Type0Header.capabilities.offset]
    last = ConfigSpace.parse(bytes(raw)).capabilities[-1]
    raw[last.offset + Capability.cap_next.offset] = first
    only(findings(bytes(raw)), "PCI 6.7", "error", "loop")


def test_only_the_list_of_other_devices_is_judged(assemble: Assemble) -> None:
    assert findings(assemble([], vendor_id=0x8086), None) == []
    only(findings(assemble([], vendor_id=0x8086, capabilities=0x10), None), "PCI 6.7", "error", "into the header")


@pytest.mark.parametrize("features", [FEATURES, None])
def test_an_expansion_rom(assemble: Assemble, good: Good, features: int | None) -> None:
    """It runs in the guest's firmware, which has all that the device is kept from."""
    raw = assemble(list(good.values()))
    only(findings(raw, features, {**SIZES, EXPANSION_ROM: 65536}), "PCI 7.5.1.2.4", "warning", '"rombar":0')
    at = Type0Header.rom_address.offset
    placed = raw[:at] + (0xFE00_0000).to_bytes(4, "little") + raw[at + 4 :]
    only(findings(placed, features), "PCI 7.5.1.2.4", "warning", "there is an expansion ROM")


def test_an_expansion_rom_of_a_device_that_may_have_all_memory(assemble: Assemble, good: Good) -> None:
    """Every QEMU network card has one."""
    del good["swiotlb"]
    features = FEATURES & ~Feature.SWIOTLB.mask
    assert findings(assemble(list(good.values())), features, {**SIZES, EXPANSION_ROM: 65536}) == []
