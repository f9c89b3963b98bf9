"""Sizes as people write them."""

from __future__ import annotations

import re
from typing import Final

from nodma.errors import UsageError

_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def parse_size(text: str) -> int:
    """Read a size: bytes, or with the suffix K, M or G (iB is allowed after it). Raises UsageError."""
    match = re.fullmatch(r"(\d{1,15})([KMG]?)(?:iB|B)?", text.strip(), re.IGNORECASE | re.ASCII)
    if not match:
        raise UsageError(f"invalid size {text!r}: give bytes, or a number with suffix K, M or G, as in 16M")
    return int(match[1]) * _UNITS[match[2].upper()]


def show_size(size: int) -> str:
    """Write a size as :func:`parse_size` reads it, as short as it goes."""
    for unit in "GMK":
        if size and size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit}"
    return str(size)
