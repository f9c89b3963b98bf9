"""Decoders tested by text: a dump, and what is printed of it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodma.pci import ConfigSpace
from nodma.pci.dump import parse_dump
from nodma.pci.record import to_json
from nodma.pci.report import QueueState, Report, VirtioState, feature_names
from nodma.pci.text import render, show_size, status_names
from nodma.spec.virtio import DeviceType, Feature, Status
from nodma.spec.virtio_blk import BlkConfig, BlkFeature

DUMP = """\
00:05.0 Class 0180: 1af4:1042 (rev 01)
00: f4 1a 42 10 06 04 10 00 01 00 80 01 00 00 00 00
10: 00 80 00 a0 00 00 00 00 0c 00 00 00 02 00 00 00
20: 00 00 00 00 00 00 00 00 00 00 00 00 f4 1a 42 10
30: 00 00 b8 fe 40 00 00 00 00 00 00 00 0a 01 00 00
40: 11 4c 02 80 00 40 00 00 00 60 00 00 09 5c 10 01
50: 00 00 00 00 00 00 00 00 40 00 00 00 09 70 14 02
60: 00 00 00 00 00 30 00 00 08 00 00 00 04 00 00 00
70: 09 80 10 03 00 00 00 00 00 10 00 00 01 00 00 00
80: 09 90 10 04 00 00 00 00 00 20 00 00 3c 00 00 00
90: 09 a4 14 05 00 00 00 00 00 00 00 00 00 00 00 00
a0: 00 00 00 00 09 b8 14 0a 02 00 00 00 00 00 00 00
b0: 00 00 00 01 ff ff 00 00 09 c4 0c 09 34 12 de ad
c0: be ef 00 01 01 cc 03 c8 08 00 00 00 05 e4 84 01
d0: 00 00 e0 fe 00 00 00 00 41 00 00 00 00 00 00 00
e0: 00 00 00 00 13 ec 06 03 00 01 00 00 09 f4 08 63
f0: 00 00 00 00 03 00 00 00 00 00 00 00 00 00 00 00
"""

BRIEF = """\
00:05.0 Mass storage controller: Virtio block device [1af4:1042] (rev 01)
\tSubsystem: 1af4:1042
\tControl: I/O- Mem+ BusMaster+ SpecCycle- MemWINV- VGASnoop- ParErr- Stepping- SERR- FastB2B- DisINTx+
\tStatus: Cap+ 66MHz- UDF- FastB2B- ParErr- >TAbort- <TAbort- <MAbort- >SERR- <PERR- INTx-
\tInterrupt: pin A routed to IRQ 10
\tExpansion ROM at feb80000 [disabled]
\tRegion 0: Memory at a0008000 (32-bit, non-prefetchable) [size=32K]
\tRegion 2: Memory at 200000000 (64-bit, prefetchable) [size=16M]
\tCapabilities: [40] MSI-X: Enable+ Count=3 Masked-
\tCapabilities: [4c] VirtIO: CommonCfg
\tCapabilities: [5c] VirtIO: Notify
\tCapabilities: [70] VirtIO: ISR
\tCapabilities: [80] VirtIO: DeviceCfg
\tCapabilities: [90] VirtIO: PciCfg
\tCapabilities: [a4] VirtIO: SWIOTLB
\tCapabilities: [b8] VirtIO: VendorData
\tCapabilities: [c4] Power Management version 3
\tCapabilities: [cc] MSI: Enable- Count=1/4 Maskable+ 64bit+
\tCapabilities: [e4] PCI Advanced Features
\tCapabilities: [ec] VirtIO: <unknown type 99>
\tCapabilities: [f4] Vital Product Data
"""

FULL_TAIL = """\
\tCapabilities: [40] MSI-X: Enable+ Count=3 Masked-
\t\tVector table: BAR=0 offset=00004000
\t\tPBA: BAR=0 offset=00006000
\tCapabilities: [4c] VirtIO: CommonCfg
\t\tBAR=0 offset=00000000 size=00000040
\tCapabilities: [5c] VirtIO: Notify
\t\tBAR=0 offset=00003000 size=00000008 multiplier=00000004
\tCapabilities: [70] VirtIO: ISR
\t\tBAR=0 offset=00001000 size=00000001
\tCapabilities: [80] VirtIO: DeviceCfg
\t\tBAR=0 offset=00002000 size=0000003c
\tCapabilities: [90] VirtIO: PciCfg
\t\tBAR=0 offset=00000000 size=00000000
\tCapabilities: [a4] VirtIO: SWIOTLB
\t\tBAR=2 offset=00000000 size=01000000
\t\tOwner: self, and others may use it
\tCapabilities: [b8] VirtIO: VendorData
\t\tVendor=1234 length=12
\t\tData: de ad be ef 00 01
\tCapabilities: [c4] Power Management version 3
\t\tFlags: PMEClk- DSI- D1- D2- PME(D0+,D1-,D2-,D3hot+,D3cold+)
\t\tStatus: D0 NoSoftRst+ PME-Enable- PME-
\tCapabilities: [cc] MSI: Enable- Count=1/4 Maskable+ 64bit+
\t\tAddress: 00000000fee00000  Data: 0041
\t\tMasking: 00000000  Pending: 00000000
\tCapabilities: [e4] PCI Advanced Features
\t\tAFCap: TP+ FLR+
\t\tAFStatus: TP+
\tCapabilities: [ec] VirtIO: <unknown type 99>
\t\tBAR=0 offset=00000000 size=00000000
\tCapabilities: [f4] Vital Product Data
\tDevice status: 0f (ACKNOWLEDGE DRIVER DRIVER_OK FEATURES_OK)
\tFeatures offered: 0000000108000200
\t\tFLUSH SWIOTLB VERSION_1
\tQueues: 3
\t\tQueue 0: size 256, enabled
\t\tQueue 1: size 128, not enabled
\t\t(1 more are not shown)
\tBlock device configuration:
\t\tcapacity: 32768 sectors (16M)
"""

STATE = VirtioState(
    features=Feature.SWIOTLB.mask | Feature.VERSION_1.mask | BlkFeature.FLUSH.mask,
    status=Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK,
    queue_count=3,
    queues=(QueueState(0, 256, True), QueueState(1, 128, False)),
    block=BlkConfig.new(capacity=32768, blk_size=512),
)


@pytest.fixture
def report() -> Report:
    (found,) = parse_dump(DUMP)
    return Report(found.slot, ConfigSpace.parse(found.raw, {0: 32 << 10, 2: 16 << 20}), STATE)


def test_one_line(report: Report) -> None:
    assert render(report) == BRIEF.splitlines()[0] + ": 2 warnings\n"


def test_brief(report: Report) -> None:
    first, rest = BRIEF.split("\n", 1)
    assert render(report, 1) == f"{first}: 2 warnings\n{rest}"


def test_full(report: Report) -> None:
    text = render(report, 2)
    head = BRIEF[: BRIEF.index("\tCapabilities")]
    assert text.startswith(head + FULL_TAIL)
    assert "\t\tblk_size: 512\n" in text
    assert "\tFindings:\n\t\tSW-P1: warning: VIRTIO_F_ACCESS_PLATFORM (bit 33) is not offered" in text


def test_no_findings(report: Report) -> None:
    assert render(Report("00:00.0", ConfigSpace.parse(bytes(256))), 2).endswith("\tFindings: none\n")


def test_express() -> None:
    raw = bytearray(4096)
    raw[:8] = bytes.fromhex("f41a421000001000")
    raw[0x34] = 0x40
    raw[0x40:0x54] = bytes.fromhex("1000 1202 0080 0010 3720 1900 4304 0000 0000 4310")
    raw[0x100:0x10C] = bytes.fromhex("0300 0115 8877 6655 4433 2211")
    raw[0x150:0x154] = bytes.fromhex("ff7f 0100")
    lines = render(Report("00:00.0", ConfigSpace.parse(bytes(raw))), 2)
    assert (
        """\
\tCapabilities: [40] Express (v2) Legacy Endpoint, IntMsgNum 1
\t\tDevCap: MaxPayload 128 bytes, ExtTag- RBE+ FLReset+
\t\tDevCtl: CorrErr+ NonFatalErr+ FatalErr+ UnsupReq- RlxdOrd+ ExtTag- NoSnoop-
\t\t        MaxPayload 256 bytes, MaxReadReq 512 bytes
\t\tDevSta: CorrErr+ NonFatalErr- FatalErr- UnsupReq+ AuxPwr+ TransPend-
\t\tLnkCap: Speed 8GT/s, Width x4
\t\tLnkSta: Speed 8GT/s, Width x4
\tCapabilities: [100] Device Serial Number 11-22-33-44-55-66-77-88
\tCapabilities: [150] Extended Capability ID 0x7fff v1
"""
        in lines
    )


def test_nothing_answers() -> None:
    assert render(Report("00:00.0", ConfigSpace.parse(b"\xff" * 256)), 1) == "00:00.0 nothing answers here\n"


def test_truncated(report: Report) -> None:
    text = render(Report("00:00.0", ConfigSpace.parse(report.space.raw[:64])), 2)
    assert "\tCapabilities: some lie beyond the 64 bytes that are known\n" in text
    assert "\tFindings: none\n\tNot checked:\n\t\tcapabilities beyond the 64 bytes that are known\n" in text


def test_io_bar_without_address() -> None:
    raw = bytearray(256)
    raw[0x10] = 1
    assert "Region 0: I/O ports at <unassigned> [disabled]\n" in render(Report("00:00.0", ConfigSpace.parse(raw)), 1)


@pytest.mark.parametrize(("size", "text"), [(0, "0"), (1, "1"), (1024, "1K"), (1536, "1536"), (16 << 30, "16G")])
def test_sizes(size: int, text: str) -> None:
    assert show_size(size) == text


def test_names_of_features() -> None:
    mask = 1 << 1 | 1 << 27 | 1 << 63
    assert list(feature_names(mask, DeviceType.BLOCK)) == ["SIZE_MAX", "SWIOTLB", "bit63"]
    assert list(feature_names(mask, DeviceType.NET)) == ["bit1", "SWIOTLB", "bit63"]


def test_names_of_status() -> None:
    assert list(status_names(0x91)) == ["ACKNOWLEDGE", "FAILED", "0x10"]


def test_json(report: Report) -> None:
    record = json.loads(json.dumps(to_json(report)))
    assert record["slot"] == "00:05.0"
    assert record["device_type"] == DeviceType.BLOCK
    assert record["header"]["vendor_id"] == 0x1AF4
    assert record["bars"][1] == {
        "index": 2, "kind": "memory", "address": 2 << 32, "is64": True, "prefetchable": True, "size": 16 << 20,
    }  # fmt: skip
    [swiotlb] = [cap for cap in record["capabilities"] if cap["name"] == "VirtIO: SWIOTLB"]
    assert swiotlb["virtio"] == {"cfg_type": 10, "bar": 2, "offset": 0, "length": 16 << 20, "owner": None}
    assert "SWIOTLB" in record["virtio"]["feature_names"]
    assert record["virtio"]["queues"][1] == {"index": 1, "size": 128, "enabled": False}
    assert record["virtio"]["block"]["capacity"] == 32768
    assert [finding["clause"] for finding in record["findings"]] == ["SW-P1", "PCI 7.5.1.2.4"]


def check_printable(space: ConfigSpace, state: VirtioState | None) -> None:
    report = Report("00:00.0", space, state)
    for verbosity in range(3):
        text = render(report, verbosity)
        assert len(text) < 400_000
        assert all(char.isprintable() or char in "\t\n" for char in text)
    json.dumps(to_json(report))


STATES = st.none() | st.builds(
    VirtioState,
    features=st.none() | st.integers(0, (1 << 64) - 1),
    status=st.none() | st.integers(0, 255),
    queue_count=st.none() | st.integers(0, 65535),
    block=st.none() | st.binary(min_size=BlkConfig.size, max_size=BlkConfig.size).map(BlkConfig),
)


@given(st.binary(max_size=4096), STATES)
def test_any_bytes(raw: bytes, state: VirtioState | None) -> None:
    check_printable(ConfigSpace.parse(raw), state)


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), max_size=24), STATES)
def test_mutations(changes: list[tuple[int, int]], state: VirtioState | None) -> None:
    (found,) = parse_dump(DUMP)
    changed = bytearray(found.raw)
    for at, value in changes:
        changed[at] = value
    check_printable(ConfigSpace.parse(bytes(changed)), state)


def test_longest_lists() -> None:
    """As many capabilities as fit, each with as much to say as it can."""
    raw = bytearray(4096)
    raw[:8] = bytes.fromhex("f41a421000001000")
    raw[0x34] = 0x40
    for at in range(0x40, 0x100, 4):
        raw[at : at + 4] = bytes([9, at + 4 & 0xFF, 0xFF, 10])
    for at in range(0x100, 0x1000, 4):
        raw[at : at + 4] = ((at + 4 & 0xFFF) << 20 | 0x1_0001).to_bytes(4, "little")
    check_printable(ConfigSpace.parse(bytes(raw), {}), VirtioState(features=0))
