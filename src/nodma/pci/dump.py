"""Hex dumps of configuration spaces, as ``lspci -x`` writes and ``lspci -F`` reads them::

    00:05.0 Class 0180: 1af4:1042 (rev 01)
    00: f4 1a 42 10 00 00 10 00 01 00 80 01 00 00 00 00

A line that begins with a slot begins a device, its rows follow, and an empty line ends it. All else is text for
people.
"""

from __future__ import annotations

import re
from typing import Final

from nodma.errors import UsageError
from nodma.pci.config import ConfigSpace
from nodma.spec.pci import CONFIG_SIZE, EXTENDED_CONFIG_SIZE, FIRST_CAPABILITY

_SLOT: Final = re.compile(r"((?:[0-9a-f]{4,6}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])(?: |$)", re.IGNORECASE | re.ASCII)
_ROW: Final = re.compile(r"([0-9a-f]{2,8}):(?: (.*)|$)", re.IGNORECASE | re.ASCII)
_BYTES: Final = re.compile(r"[0-9a-f]{2}(?: [0-9a-f]{2})*", re.IGNORECASE | re.ASCII)
_ROW_BYTES: Final = 16
_SIZES: Final = (FIRST_CAPABILITY, CONFIG_SIZE, EXTENDED_CONFIG_SIZE)
_MAX_DEVICES: Final = 65536
"""As many functions as a PCI domain has; more are no dump of a machine."""


def parse_dump(text: str) -> list[tuple[str, bytes]]:
    """Give slot and configuration space of each device with rows in a dump.

    Raises UsageError, with the line's number, where a row is none.
    """
    devices: list[tuple[str, bytearray]] = []
    inside = False
    for number, line in enumerate(text.split("\n"), 1):
        line = line.rstrip()
        if begins := _SLOT.match(line):
            if len(devices) == _MAX_DEVICES:
                raise UsageError(f"line {number}: there are more than {_MAX_DEVICES} devices")
            devices.append((begins[1].lower(), bytearray()))
            inside = True
        elif not line:
            inside = False
        elif inside and (row := _ROW.match(line)):
            _take_row(devices[-1][1], number, int(row[1], 16), (row[2] or "").strip())
    return [(slot, bytes(data)) for slot, data in devices if data]


def _take_row(data: bytearray, number: int, offset: int, text: str) -> None:
    if not _BYTES.fullmatch(text):
        raise UsageError(f"line {number}: after the offset come bytes, two hex digits each and spaces between")
    row = bytes.fromhex(text)
    if offset + len(row) > EXTENDED_CONFIG_SIZE:
        raise UsageError(f"line {number}: a configuration space has at most {EXTENDED_CONFIG_SIZE} bytes")
    if offset != len(data):
        raise UsageError(f"line {number}: the row at {offset:#x} does not follow on the {len(data):#x} bytes before it")
    data += row


def write_dump(slot: str, space: ConfigSpace) -> str:
    """Write a device as ``lspci -F`` reads it: 64, 256 or 4096 bytes, zeros for what is not known of the last."""
    head = space.header
    size = next((size for size in _SIZES if len(space.raw) <= size), EXTENDED_CONFIG_SIZE)
    data = space.raw[:size].ljust(size, b"\0")
    lines = [
        f"{slot} Class {head.base_class:02x}{head.subclass:02x}:"
        f" {head.vendor_id:04x}:{head.device_id:04x} (rev {head.revision_id:02x})"
    ]
    width = 3 if size > CONFIG_SIZE else 2
    for at in range(0, size, _ROW_BYTES):
        offset = f"{at:02x}" if at < CONFIG_SIZE else f"{at:0{width}x}"
        lines.append(f"{offset}: {data[at : at + _ROW_BYTES].hex(' ')}")
    return "\n".join(lines) + "\n"
