"""Functions as sysfs shows them, in a directory that looks like it; and reading that touches nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodma.errors import UsageError
from nodma.pci import ConfigSpace
from nodma.pci.probe import read_config
from nodma.pci.sysfs import device_and_function, full_address, read_function, slot_address
from nodma.spec.layout import Layout
from nodma.spec.pci import CONFIG_SIZE, EXTENDED_CONFIG_SIZE, CapId, PciStatus, Type0Header
from nodma.spec.virtio_pci import MODERN_DEVICE_BASE, VIRTIO_VENDOR, CfgType, VirtioPciCfgCap

RESOURCE = """\
0x00000000febd0000 0x00000000febd7fff 0x0000000000040200
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x0000004000000000 0x0000004000ffffff 0x000000000014220c
nonsense
0x1 0x2
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x0000000000000000 0x0000000000000000 0x0000000000000000
"""
ROM = "0x00000000feb80000 0x00000000febbffff 0x0000000000046200\n"


@pytest.fixture
def place(tmp_path: Path, assemble: Callable[..., bytes], good: dict[str, Layout]) -> Path:
    """The directory of a function at 0000:05:00.0."""
    place = tmp_path / "0000:05:00.0"
    place.mkdir()
    (place / "config").write_bytes(assemble(list(good.values())))
    (place / "resource").write_text(RESOURCE)
    return place


@pytest.mark.parametrize("address", ["05:00.0", "0000:05:00.0"])
def test_function(place: Path, address: str) -> None:
    report = read_function(address, place.parent)
    assert report.slot == "0000:05:00.0"
    assert report.space.raw == (place / "config").read_bytes()
    assert {bar.index: bar.size for bar in report.space.bars} == {0: 32 << 10, 2: 16 << 20}
    assert report.findings == []
    assert report.problems == ()


def test_an_expansion_rom_is_found(place: Path) -> None:
    lines = RESOURCE.splitlines(keepends=True)
    (place / "resource").write_text("".join([*lines[:6], ROM]))
    report = read_function("05:00.0", place.parent)
    assert report.space.rom_size == 0x40000
    assert [finding.clause for finding in report.findings] == ["PCI 7.5.1.2.4"]


def test_without_resource_sizes_are_not_known(place: Path) -> None:
    (place / "resource").unlink()
    report = read_function("05:00.0", place.parent)
    assert not report.space.sizes_known
    assert report.findings == []


def test_what_others_than_root_may_read(place: Path) -> None:
    config = place / "config"
    config.write_bytes(config.read_bytes()[:64])
    report = read_function("05:00.0", place.parent)
    assert "only the first 64 bytes" in report.problems[0]
    assert report.findings == []


def test_missing_function(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no PCI function 0000:05:00\.0"):
        read_function("05:00.0", tmp_path)


def test_function_that_cannot_be_read(place: Path) -> None:
    (place / "config").unlink()
    with pytest.raises(UsageError, match="cannot be opened"):
        read_function("05:00.0", place.parent)
    (place / "config").mkdir()
    with pytest.raises(UsageError, match="cannot be read"):
        read_function("05:00.0", place.parent)


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("05:00.0", "0000:05:00.0"),
        ("0001:0A:1F.7", "0001:0a:1f.7"),
        ("05:00.8", None),
        ("5:0.0", None),
        ("../05:00.0", None),
        ("05:00.0\n", None),
    ],
)
def test_addresses(text: str, full: str | None) -> None:
    assert full_address(text) == full


def test_no_address(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a PCI address"):
        read_function("../../etc", tmp_path)


def watched(raw: bytes) -> tuple[set[int], bytes]:
    """Read a configuration space; gives the offsets that were read, and what came of it."""
    touched: set[int] = set()

    def read(offset: int, count: int) -> bytes:
        assert count >= 0
        touched.update(range(offset, offset + count))
        return raw[offset : offset + count]

    return touched, read_config(read)


@pytest.mark.parametrize("size", [CONFIG_SIZE, EXTENDED_CONFIG_SIZE])
def test_pci_cfg_data_is_not_read(assemble: Callable[..., bytes], good: dict[str, Layout], size: int) -> None:
    good["pci"].pci_cfg_data = b"\xaa\xbb\xcc\xdd"  # type: ignore[attr-defined]
    raw = assemble(list(good.values()), size)
    cap = ConfigSpace.parse(raw).virtio_all(CfgType.PCI)[0]
    begin = cap.offset + VirtioPciCfgCap.pci_cfg_data.offset
    touched, data = watched(raw)
    assert not touched & set(range(begin, begin + 4))
    assert data == raw[:begin] + bytes(4) + raw[begin + 4 :]


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_read(raw: bytes, virtio: bool) -> None:
    if virtio and len(raw) >= Type0Header.size:
        changed = bytearray(raw)
        header = Type0Header(changed)
        header.vendor_id, header.device_id, header.status = VIRTIO_VENDOR, MODERN_DEVICE_BASE, PciStatus.CAP_LIST
        changed[Type0Header.size :: 4] = bytes([CapId.VENDOR]) * len(changed[Type0Header.size :: 4])
        changed[Type0Header.size + 3 :: 8] = bytes([CfgType.PCI]) * len(changed[Type0Header.size + 3 :: 8])
        raw = bytes(changed)
    _, data = watched(raw)
    assert len(data) <= len(raw) + VirtioPciCfgCap.pci_cfg_data.size


@pytest.mark.parametrize(
    ("text", "slot"),
    [("00:05", "0000:00:05"), ("0001:0a:1f", "0001:0a:1f"), ("00:05.0", None), ("5", None), ("00:05\n", None)],
)
def test_the_address_of_a_slot(text: str, slot: str | None) -> None:
    assert slot_address(text) == slot


def test_device_and_function_of_an_address() -> None:
    assert device_and_function("0000:03:1f.6") == (0x1F, 6)
    for text in ("03:1f.6", "0000:03:1f.8", "nonsense"):
        with pytest.raises(UsageError, match="is not a full PCI address"):
            device_and_function(text)
