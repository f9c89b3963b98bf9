"""Dumps, read and written."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodma.errors import UsageError
from nodma.pci import ConfigSpace
from nodma.pci.dump import parse_dump, write_dump
from nodma.spec.layout import Layout
from nodma.spec.pci import CONFIG_SIZE, EXTENDED_CONFIG_SIZE

ROW = "f4 1a 42 10 00 00 10 00 01 00 80 01 00 00 00 00"


def test_what_lspci_writes() -> None:
    text = f"""00:05.0 SCSI storage controller: Red Hat, Inc. Virtio 1.0 block device (rev 01)
\tSubsystem: Red Hat, Inc. Device 1100
\tCapabilities: [84] VirtIO: CommonCfg
\tKernel driver in use: virtio-pci
00: {ROW}
10: {ROW}

0001:1F:00.7 Ethernet controller
00: {ROW}
"""
    assert parse_dump(text) == [
        ("00:05.0", bytes.fromhex(ROW) * 2),
        ("0001:1f:00.7", bytes.fromhex(ROW)),
    ]


def test_text_between_devices_is_passed_over() -> None:
    assert parse_dump(f"pcilib: a warning\n00: {ROW}\n\r\n00:01.0\r\n00: {ROW}\r\n\r\n00: junk\n") == [
        ("00:01.0", bytes.fromhex(ROW))
    ]


def test_device_without_rows_is_none() -> None:
    assert parse_dump("00:05.0 Ethernet controller\n\n") == []


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("00: zz", "line 2: after the offset come bytes"),
        ("00: 0 1", "line 2: after the offset come bytes"),
        ("00:", "line 2: after the offset come bytes"),
        ("10: 00", "line 2: the row at 0x10 does not follow on the 0x0 bytes"),
        ("ffffffff: 00", "line 2: a configuration space has at most 4096 bytes"),
        ("00: " + "00 " * 4097, "line 2: a configuration space has at most 4096 bytes"),
    ],
)
def test_rows_that_are_none(row: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_dump(f"00:05.0 Device\n{row}\n")


@given(st.text(alphabet="0123456789abcdef:. \n\r\tzé", max_size=400) | st.text(max_size=100))
def test_any_text(text: str) -> None:
    with suppress(UsageError):
        devices = parse_dump("00:05.0 Device\n" + text)
        assert all(0 < len(data) <= EXTENDED_CONFIG_SIZE for _, data in devices)


@given(st.sampled_from([64, 256, 4096]), st.data())
def test_round_trip(size: int, data: st.DataObject) -> None:
    raw = data.draw(st.binary(min_size=size, max_size=size))
    assert parse_dump(write_dump("00:05.0", ConfigSpace.parse(raw))) == [("00:05.0", raw)]


@pytest.mark.parametrize(("length", "written"), [(0, 64), (65, 256), (257, 4096), (5000, 4096)])
def test_sizes(length: int, written: int) -> None:
    """lspci knows three sizes; what is not known is zeros."""
    raw = b"\xaa" * length
    [(_, data)] = parse_dump(write_dump("00:05.0", ConfigSpace.parse(raw)))
    assert data == raw[:written].ljust(written, b"\0")


@pytest.mark.skipif(shutil.which("lspci") is None, reason="lspci is not installed")
@pytest.mark.parametrize("size", [CONFIG_SIZE, EXTENDED_CONFIG_SIZE])
def test_lspci_reads_it(tmp_path: Path, assemble: Callable[..., bytes], good: dict[str, Layout], size: int) -> None:
    dump = tmp_path / "dump"
    dump.write_text(write_dump("00:05.0", ConfigSpace.parse(assemble(list(good.values()), size))))
    text = subprocess.run(["lspci", "-F", dump, "-vv", "-n"], capture_output=True, text=True, check=True).stdout
    assert text.startswith("00:05.0 0180: 1af4:1042 (rev 01)\n")
    for name in ("CommonCfg", "Notify", "ISR", "DeviceCfg"):
        assert f"VirtIO: {name}\n" in text
    assert "BAR=0 offset=00003000 size=00000004" in text
    assert "multiplier=00000004" in text
    assert "BAR=2 offset=00000000 size=01000000" in text
