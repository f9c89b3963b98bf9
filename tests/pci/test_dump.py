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
from nodma.pci.dump import UNTITLED, DumpedFunction, decode_dump, parse_dump, write_dump
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
        DumpedFunction("00:05.0", bytes.fromhex(ROW) * 2),
        DumpedFunction("0001:1f:00.7", bytes.fromhex(ROW)),
    ]


@pytest.mark.parametrize(
    ("title", "ids"),
    [
        ("00:05.0 Class 0100: 1af4:1042 (rev 01)", (0x1AF4, 0x1042)),
        ("00:05.0 0100: 1af4:1042 (rev 01)", (0x1AF4, 0x1042)),
        (
            "00:05.0 SCSI storage controller [0100]: Red Hat, Inc. Virtio block device [1af4:1042] (rev 01)",
            (0x1AF4, 0x1042),
        ),
        ("00:05.0 SCSI storage controller: Red Hat, Inc. Virtio block device (rev 01)", None),
        ("00:05.0", None),
    ],
)
def test_titles_tell_the_ids(title: str, ids: tuple[int, int] | None) -> None:
    assert parse_dump(f"{title}\n00: {ROW}\n") == [DumpedFunction("00:05.0", bytes.fromhex(ROW), ids)]


TITLED = f"00:05.0 Class 0100: 1af4:1042 (rev 01)\n00: {ROW}\n10: {ROW}\n"


@pytest.mark.parametrize(
    "data",
    [
        TITLED.replace("\n", "\r\n").encode(),
        TITLED.replace("\n", "\r").encode(),
        "".join(f"    {line}\n" for line in TITLED.splitlines()).encode(),
        "".join(f"\t{line}\n" for line in TITLED.splitlines()).encode(),
        "".join(f"> > {line}\n" for line in TITLED.splitlines()).encode(),
        "".join(f"| {line}\n" for line in TITLED.splitlines()).encode(),
        TITLED.encode("utf-16"),
        TITLED.encode("utf-16-le"),
        TITLED.replace("\n", "\r\n").encode("utf-16-be"),
        TITLED.encode("utf-8-sig"),
        b"a line in Latin-1: \xe4\n" + TITLED.encode(),
    ],
    ids=["CRLF", "CR", "spaces", "tabs", "quoted", "bars", "UTF-16", "UTF-16LE", "UTF-16BE", "UTF-8 mark", "Latin-1"],
)
def test_dumps_that_came_by_mail_or_an_editor(data: bytes) -> None:
    (found,) = parse_dump(decode_dump(data))
    assert found == DumpedFunction("00:05.0", bytes.fromhex(ROW) * 2, (0x1AF4, 0x1042))


def test_rows_without_a_title() -> None:
    text = f"00: {ROW}\n10: {ROW}\n00: {ROW}\n"
    assert parse_dump(text) == [
        DumpedFunction(UNTITLED, bytes.fromhex(ROW) * 2),
        DumpedFunction(UNTITLED, bytes.fromhex(ROW)),
    ]


def test_text_between_functions_is_passed_over() -> None:
    assert parse_dump(f"pcilib: a warning\n10: {ROW}\n\r\n00:01.0\r\n00: {ROW}\r\n\r\n00: junk\n") == [
        DumpedFunction("00:01.0", bytes.fromhex(ROW))
    ]


def test_device_without_rows_is_none() -> None:
    assert parse_dump("00:05.0 Ethernet controller\n\n") == []


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("00: zz", "line 2: expected an offset and bytes"),
        ("00: 0 1", "line 2: expected an offset and bytes"),
        ("00:", "line 2: expected an offset and bytes"),
        ("10: 00", "line 2: the row at 0x10 does not follow the 0x0 bytes"),
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
        assert all(0 < len(found.raw) <= EXTENDED_CONFIG_SIZE for found in devices)


@given(st.sampled_from([64, 256, 4096]), st.data())
def test_round_trip(size: int, data: st.DataObject) -> None:
    raw = data.draw(st.binary(min_size=size, max_size=size))
    (found,) = parse_dump(write_dump("00:05.0", ConfigSpace.parse(raw)))
    assert (found.slot, found.raw) == ("00:05.0", raw)


@pytest.mark.parametrize(("length", "written"), [(0, 64), (65, 256), (257, 4096), (5000, 4096)])
def test_sizes(length: int, written: int) -> None:
    """lspci knows three sizes; what is not known is zeros."""
    raw = b"\xaa" * length
    (found,) = parse_dump(write_dump("00:05.0", ConfigSpace.parse(raw)))
    assert found.raw == raw[:written].ljust(written, b"\0")


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
