"""Hex dumps of configuration spaces, as ``lspci -x`` writes and ``lspci -F`` reads them::

    00:05.0 Class 0180: 1af4:1042 (rev 01)
    00: f4 1a 42 10 00 00 10 00 01 00 80 01 00 00 00 00

A line that begins with an address begins a function, its rows follow, and an empty line ends it. All else is text
for people. Dumps reach us through mail and editors: indented, quoted, with other line ends, in UTF-16, or without their
first lines; all of these are read.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from typing import Final

from nodma.errors import UsageError
from nodma.pci.config import ConfigSpace
from nodma.spec.pci import CONFIG_SIZE, EXTENDED_CONFIG_SIZE, FIRST_CAPABILITY

_QUOTE: Final = re.compile(r"[>|\s]*")
_SLOT: Final = re.compile(r"((?:[0-9a-f]{4,6}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])(?: |$)", re.IGNORECASE | re.ASCII)
_IDS: Final = re.compile(
    r" (?:Class )?[0-9a-f]{4}: ([0-9a-f]{4}):([0-9a-f]{4})\b|\[([0-9a-f]{4}):([0-9a-f]{4})\]",
    re.IGNORECASE | re.ASCII,
)
"""Vendor and device in a title: as ``lspci -n`` writes them, or ``lspci -nn``."""
_ROW: Final = re.compile(r"([0-9a-f]{2,8}):(?: (.*)|$)", re.IGNORECASE | re.ASCII)
_BYTES: Final = re.compile(r"[0-9a-f]{2}(?: [0-9a-f]{2})*", re.IGNORECASE | re.ASCII)
_ROW_BYTES: Final = 16
_SIZES: Final = (FIRST_CAPABILITY, CONFIG_SIZE, EXTENDED_CONFIG_SIZE)
_MAX_FUNCTIONS: Final = 65536
"""As many functions as a PCI domain has; a dump with more is not a dump of a machine."""
_SNIFFED: Final = 64
"""Bytes that tell UTF-16 without a mark from other text."""
UNTITLED: Final = "00:00.0"
"""The address given to a function whose rows have no title."""


@dataclass(frozen=True, slots=True)
class DumpedFunction:
    """A function in a dump: its address, the bytes of its rows, vendor and device as its title tells them."""

    slot: str
    raw: bytes
    ids: tuple[int, int] | None = None


def decode_dump(data: bytes) -> str:
    """Return a dump as text: UTF-16 with or without its mark, else UTF-8. What is neither becomes U+FFFD."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace")
    head = data[:_SNIFFED]
    if head and not any(head[1::2]):
        return data.decode("utf-16-le", "replace")
    if head and not any(head[0::2]):
        return data.decode("utf-16-be", "replace")
    return data.decode("utf-8-sig", "replace")


def parse_dump(text: str) -> list[DumpedFunction]:
    """Return each function with rows in a dump.

    Raises UsageError, with the line's number, for a row that is not 16 bytes in hex or does not follow the one before.
    """
    found: list[tuple[str, tuple[int, int] | None, bytearray]] = []
    inside = False

    def begin(slot: str, title: str) -> None:
        if len(found) == _MAX_FUNCTIONS:
            raise UsageError(f"line {number}: more than {_MAX_FUNCTIONS} functions")
        found.append((slot, _ids(title), bytearray()))

    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1):
        line = line[_QUOTE.match(line).end() :].rstrip()  # type: ignore[union-attr] # it matches anything
        if title := _SLOT.match(line):
            begin(title[1].lower(), line)
            inside = True
        elif not line:
            inside = False
        elif row := _ROW.match(line):
            offset, data = int(row[1], 16), (row[2] or "").strip()
            if not inside or (offset == 0 and found[-1][2]):
                if offset or not _BYTES.fullmatch(data):
                    continue  # text for people
                begin(UNTITLED, "")
                inside = True
            _take_row(found[-1][2], number, offset, data)
    return [DumpedFunction(slot, bytes(data), ids) for slot, ids, data in found if data]


def _ids(title: str) -> tuple[int, int] | None:
    """Return the last vendor and device in a title: in `lspci -nn` the class comes before them."""
    words = [tuple(int(word, 16) for word in match.groups() if word) for match in _IDS.finditer(title)]
    return (words[-1][0], words[-1][1]) if words else None


def _take_row(data: bytearray, number: int, offset: int, text: str) -> None:
    if not _BYTES.fullmatch(text):
        raise UsageError(f"line {number}: expected an offset and bytes, two hex digits each, separated by spaces")
    row = bytes.fromhex(text)
    if offset + len(row) > EXTENDED_CONFIG_SIZE:
        raise UsageError(f"line {number}: a configuration space has at most {EXTENDED_CONFIG_SIZE} bytes")
    if offset != len(data):
        raise UsageError(f"line {number}: the row at {offset:#x} does not follow the {len(data):#x} bytes before it")
    data += row


def write_dump(slot: str, space: ConfigSpace) -> str:
    """Return a function as ``lspci -F`` reads it: 64, 256 or 4096 bytes, zeros for what is not known of the last."""
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
