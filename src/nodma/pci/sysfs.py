"""Read a function of this machine, as Linux shows it under ``/sys/bus/pci``. Nothing is written."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from nodma.errors import Unavailable, UsageError
from nodma.pci.config import ConfigSpace
from nodma.pci.probe import read_config
from nodma.pci.report import Report
from nodma.spec.pci import EXPANSION_ROM, FIRST_CAPABILITY

ROOT: Final = Path("/sys/bus/pci/devices")
_ADDRESS: Final = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}:[0-9a-f]{2}\.[0-7])", re.IGNORECASE | re.ASCII)
_MAX_RESOURCE_BYTES: Final = 4096


def full_address(text: str) -> str | None:
    """Return ``05:00.0`` or ``0000:05:00.0`` with its domain; None if this is not a PCI address."""
    match = _ADDRESS.fullmatch(text)
    return f"{match[1] or '0000'}:{match[2]}".lower() if match else None


def slot_address(text: str) -> str | None:
    """Return ``00:05`` or ``0000:00:05``, a slot, with its domain; None if this is not the address of a slot."""
    address = full_address(f"{text}.0")
    return address.removesuffix(".0") if address else None


def device_and_function(address: str) -> tuple[int, int]:
    """Return device and function number of a full PCI address. Raises UsageError if it is not one."""
    if full_address(address) != address:
        raise UsageError(f"{address!r} is not a full PCI address: expected its domain too, as in 0000:05:00.0")
    device, _, function = address.rpartition(":")[2].partition(".")
    return int(device, 16), int(function)


def read_function(address: str, root: Path = ROOT) -> Report:
    """Read the function at a PCI address. Raises UsageError if there is none, or it may not be read."""
    slot = full_address(address)
    if slot is None:
        raise UsageError(f"{address!r} is not a PCI address: write 05:00.0 or 0000:05:00.0")
    place = root / slot
    if not place.is_dir():
        raise Unavailable(f"no PCI function {slot} on this machine ({place}); `lspci -D` lists those there are")
    raw = _read_config(place / "config", slot)
    space = ConfigSpace.parse(raw, bar_sizes(place / "resource"), _ids(place))
    problems = []
    if space.truncated and len(raw) <= FIRST_CAPABILITY:
        problems.append(f"only the first {len(raw)} bytes of {slot} may be read: only root may read the capabilities")
    return Report(slot, space, problems=tuple(problems))


def _ids(place: Path) -> tuple[int, int] | None:
    """Return vendor and device as Linux knows them: a virtual function's registers do not tell."""
    try:
        return int((place / "vendor").read_text(), 16), int((place / "device").read_text(), 16)
    except (OSError, ValueError):
        return None


def _read_config(path: Path, slot: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Unavailable(f"the configuration space of {slot} cannot be opened ({path}): {error.strerror}") from error
    try:
        return read_config(lambda offset, count: os.pread(fd, count, offset))
    except OSError as error:
        raise Unavailable(f"the configuration space of {slot} cannot be read ({path}): {error.strerror}") from error
    finally:
        os.close(fd)


def bar_sizes(path: Path) -> dict[int, int] | None:
    """Return the sizes of the BARs that exist, and of an expansion ROM; None if not known.

    A line of the ``resource`` file at ``path`` has first and last address, and flags.
    """
    try:
        with path.open("rb") as file:
            lines = file.read(_MAX_RESOURCE_BYTES).decode("ascii", "replace").splitlines()
    except OSError:
        return None  # sizes are not in the configuration space: without them less is checked
    sizes = {}
    for index, line in enumerate(lines[: EXPANSION_ROM + 1]):
        try:
            first, last, flags = (int(word, 16) for word in line.split())
        except ValueError:
            continue
        if flags and last >= first:
            sizes[index] = last - first + 1
    return sizes
