"""Read a configuration space without touching what has side effects.

The last four bytes of virtio's PCI configuration access capability are such: to read them is to read whatever
register of a BAR the driver last aimed them at (virtio 1.4, 4.1.4.9), the ISR status for one, which that clears.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from nodma.pci.config import ConfigSpace
from nodma.spec.pci import CAPABILITY_POINTER_MASK, EXTENDED_CONFIG_SIZE, FIRST_CAPABILITY, CapId, PciStatus
from nodma.spec.virtio_pci import CfgType, VirtioPciCap, VirtioPciCfgCap

Read = Callable[[int, int], bytes]
"""Reads so many bytes at an offset; returns fewer where there are, or may be read, no more."""

_HEAD_BYTES: Final = VirtioPciCap.cfg_type.end
_HOLE: Final = VirtioPciCfgCap.pci_cfg_data


def read_config(read: Read, size: int = EXTENDED_CONFIG_SIZE) -> bytes:
    """Read up to ``size`` bytes of configuration space; zeros stand for pci_cfg_data, which is not read."""
    size = min(size, EXTENDED_CONFIG_SIZE)
    data = read(0, min(size, FIRST_CAPABILITY))
    if len(data) < FIRST_CAPABILITY:
        return data
    for hole in sorted(_holes(read, data)):
        data += read(len(data), hole - len(data))
        if len(data) < hole:
            return data
        data += bytes(_HOLE.size)
    return data + read(len(data), size - len(data)) if len(data) < size else data[:size]


def _holes(read: Read, header: bytes) -> set[int]:
    """Return the offsets of every pci_cfg_data, from no more than the first bytes of each capability."""
    holes: set[int] = set()
    space = ConfigSpace.parse(header)
    if not (space.is_virtio and space.header.status & PciStatus.CAP_LIST):
        return holes
    for at, head in _heads(read, space.header.capabilities, holes):
        if head.cap_id == CapId.VENDOR and head.cfg_type == CfgType.PCI:
            holes.add(at + _HOLE.offset)
    return holes


def _heads(read: Read, first: int, avoid: set[int]) -> Iterator[tuple[int, VirtioPciCap]]:
    """Follow the capability list, as far as it can be followed."""
    seen: set[int] = set()
    at = first & CAPABILITY_POINTER_MASK
    while at >= FIRST_CAPABILITY and at not in seen and at not in avoid:
        seen.add(at)
        head = read(at, _HEAD_BYTES)
        if len(head) < _HEAD_BYTES:
            return
        capability = VirtioPciCap(head.ljust(VirtioPciCap.size, b"\0"))
        yield at, capability
        at = capability.cap_next & CAPABILITY_POINTER_MASK
