"""Hold a configuration space against the clauses: what a device must and should present."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

from nodma.pci.config import CapabilityView, ConfigSpace, VirtioCapability
from nodma.spec.dmb import SHM_ID_MASK, DmbCommonCfg
from nodma.spec.pci import (
    BAR_COUNT,
    DEVICES,
    FUNCTIONS,
    MSIX_BIR_MASK,
    MSIX_PENDING_BITS,
    MSIX_TABLE_SIZE_MASK,
    NO_DEVICE,
    CapId,
    MsixCapability,
    MsixEntry,
)
from nodma.spec.profiles import DMB, MIN_POOL, PAGE, SELF, SWIOTLB, Clauses
from nodma.spec.virtio import Feature
from nodma.spec.virtio_pci import CfgType, CommonCfg, SharedSwiotlbCap, VirtioPciCap

Severity = Literal["error", "warning"]

_MANDATORY = (
    (CfgType.COMMON, "4.1.4.3.1"),
    (CfgType.NOTIFY, "4.1.4.4.1"),
    (CfgType.ISR, "4.1.4.5.1"),
    (CfgType.PCI, "4.1.4.9.1"),
)
_TYPES: Final = frozenset(CfgType)
_ALIGNED: Final[Mapping[int, str]] = {CfgType.COMMON: "4.1.4.3.1", CfgType.DEVICE: "4.1.4.6.1"}
"""The structures that must be 4-byte aligned, and the clause that says so."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What breaks a clause: an error if a driver must not go on, else a warning."""

    clause: str
    severity: Severity
    message: str


def audit(space: ConfigSpace, features: int | None = None, shm_id: int | None = None) -> list[Finding]:
    """Return all that is wrong with a virtio function.

    ``features`` are those it offers, ``shm_id`` is what its register dmb_shm_id says, as far as they are known.
    """
    if not space.is_virtio:
        return [Finding("PCI 6.7", "error", what) for what in space.broken]
    return [
        *(Finding("PCI 6.7", "error", what) for what in space.broken),
        *_overlong(space),
        *_mandatory(space),
        *_structures(space),
        *_swiotlb(space, features),
        *_dmb(space, features, shm_id),
        *_features(features),
        *_rom(space, features),
    ]


def not_checked(space: ConfigSpace) -> list[str]:
    """Return which checks of :func:`audit` were not possible, and what they need: empty if all were made."""
    if not space.is_virtio:
        if space.virtual_function and not _ids_known(space):
            return ["whether it is a virtio device: a virtual function reads as ffff:ffff, and its ids are not known"]
        return []
    missing = []
    if space.truncated:
        missing.append(f"capabilities beyond the {len(space.raw)} bytes that are known")
    own = [
        cap
        for cap in space.capabilities
        if isinstance(cap, VirtioCapability)
        and cap.cfg_type in _TYPES - {CfgType.PCI}
        and cap.bar < BAR_COUNT
        and cap.owner == (SELF, SELF)
    ]
    for index in sorted({cap.bar for cap in own if space.may_have_bar(cap.bar)}):
        bar = space.bar(index)
        names = ", ".join(_name(cap) for cap in own if cap.bar == index)
        if bar is None:
            missing.append(f"{names}: BAR {index} has no address, so its kind and size are not known")
        elif bar.size is None:
            missing.append(f"whether BAR {index} is large enough for {names}: its size is not known")
    return missing


def _ids_known(space: ConfigSpace) -> bool:
    return space.header.vendor_id != NO_DEVICE


def _overlong(space: ConfigSpace) -> Iterator[Finding]:
    """Check that no vendor capability reaches into the next: one of the two lengths is then wrong."""
    caps = sorted(space.capabilities, key=lambda cap: cap.offset)
    for cap, after in pairwise(caps):
        end = cap.offset + len(cap.raw)
        if cap.cap_id == CapId.VENDOR and end > after.offset:
            yield Finding(
                "PCI 6.7",
                "warning",
                f"the vendor capability at {cap.offset:#04x} reaches to {end:#04x},"
                f" into the capability at {after.offset:#04x}",
            )


def _mandatory(space: ConfigSpace) -> Iterator[Finding]:
    if space.truncated:
        return
    for cfg_type, clause in _MANDATORY:
        # The PCI configuration access capability's BAR is the driver's to write: it may be any number.
        found = space.virtio_all(cfg_type) if cfg_type == CfgType.PCI else space.virtio(cfg_type)
        if not found:
            yield Finding(clause, "error", f"no capability {cfg_type} ({cfg_type.name}): a device must present one")


def _structures(space: ConfigSpace) -> Iterator[Finding]:
    """Check each structure's place, and what its type demands of it."""
    for cap in space.capabilities:
        if not isinstance(cap, VirtioCapability) or cap.cfg_type not in _TYPES:
            continue  # drivers ignore types that they do not know
        name = _name(cap)
        if len(cap.raw) < cap.structure.size:
            yield Finding("4.1.4", "error", f"{name} has {len(cap.raw)} bytes, fewer than {cap.structure.size}")
            continue  # what it says of a place is not all there
        if cap.cfg_type == CfgType.PCI:
            continue  # its place is the driver's to write
        if cap.cfg_type == CfgType.SWIOTLB and cap.owner != (SELF, SELF):
            continue  # in another function's BAR, which is not to be seen from here
        yield from _place(space, cap, name)
        if cap.cfg_type in _ALIGNED and cap.offset_in_bar % 4:
            yield Finding(_ALIGNED[cap.cfg_type], "error", f"{name} is at {cap.offset_in_bar:#x}, not 4-byte aligned")
        if cap.cfg_type == CfgType.COMMON and cap.length < CommonCfg.queue_notif_config_data.offset:
            yield Finding("4.1.4.3.1", "error", f"{name} has {cap.length} bytes, too few for its registers")
        if cap.cfg_type == CfgType.NOTIFY:
            yield from _notify(cap, name)


def _place(space: ConfigSpace, cap: VirtioCapability, name: str) -> Iterator[Finding]:
    """Check that a structure lies in a memory BAR that exists, as far as is known."""
    clause = "SW-D2" if cap.cfg_type == CfgType.SWIOTLB else "4.1.4"
    bar = space.bar(cap.bar)
    if cap.bar >= BAR_COUNT:
        yield Finding("4.1.4", "warning", f"{name} names BAR {cap.bar}, which is reserved: drivers ignore it")
    elif not space.may_have_bar(cap.bar):
        yield Finding(clause, "error", f"{name} names BAR {cap.bar}, which does not exist")
    elif bar and bar.size is not None and cap.end > bar.size:
        where = f"{cap.offset_in_bar:#x} to {cap.end:#x}"
        yield Finding(clause, "error", f"{name} reaches from {where} in BAR {bar.index} of {bar.size:#x} bytes")
    if cap.length == 0:
        yield Finding(clause, "error", f"{name} has no length")


def _notify(cap: VirtioCapability, name: str) -> Iterator[Finding]:
    multiplier = cap.notify_off_multiplier
    if multiplier & (multiplier - 1) or multiplier == 1:
        yield Finding("4.1.4.4.1", "error", f"{name} has multiplier {multiplier}, neither 0 nor an even power of two")
    if cap.offset_in_bar % 2:
        yield Finding("4.1.4.4.1", "error", f"{name} is at {cap.offset_in_bar:#x}, not 2-byte aligned")
    if cap.length < 2:
        yield Finding("4.1.4.4.1", "error", f"{name} has {cap.length} bytes, fewer than 2")


def _swiotlb(space: ConfigSpace, features: int | None) -> Iterator[Finding]:
    """Check capability 10 and the feature that goes with it."""
    found = space.virtio_all(CfgType.SWIOTLB)
    if features is not None and not space.truncated:
        offered = bool(features & Feature.SWIOTLB.mask)
        if found and not offered:
            yield Finding("SW-V2", "warning", "there is a capability 10, but VIRTIO_F_SWIOTLB (bit 27) is not offered")
        if offered and not found:
            yield Finding("SW-V3", "error", "VIRTIO_F_SWIOTLB (bit 27) is offered, but there is no capability 10")
    if len(found) > 1:
        at = ", ".join(f"{cap.offset:#04x}" for cap in found)
        if len({(cap.owner, cap.bar, cap.offset_in_bar, cap.length) for cap in found}) > 1:
            yield Finding("SHARE", "error", f"{len(found)} capabilities 10 (at {at}) name different regions")
        else:
            yield Finding("SW-D2", "warning", f"{len(found)} capabilities 10 (at {at}): drivers use the first")
    for cap in found:
        yield from _sharing(cap)
        if cap.owner == (SELF, SELF):
            yield from _region(space, cap, SWIOTLB.clauses)


def _sharing(cap: VirtioCapability) -> Iterator[Finding]:
    """Check what of the sharing extension one function alone shows."""
    name = _name(cap)
    if VirtioPciCap.size < len(cap.raw) < SharedSwiotlbCap.size:
        yield Finding("SHARE", "warning", f"{name} has {len(cap.raw)} bytes, neither {VirtioPciCap.size} nor more")
    if not isinstance(cap.structure, SharedSwiotlbCap):
        return
    device, function = cap.owner
    if function == SELF != device:
        yield Finding("SHARE", "error", f"{name} names device {device} but no function of it")
    elif function not in (*range(FUNCTIONS), SELF):
        yield Finding("SHARE", "error", f"{name} names function {function}, expected 0 to {FUNCTIONS - 1}")
    if device not in (*range(DEVICES), SELF):
        yield Finding("SHARE", "error", f"{name} names device {device}, expected 0 to {DEVICES - 1}")
    if any(cap.structure.padding2):
        yield Finding("SHARE", "warning", f"{name} has {cap.structure.padding2.hex()} in its padding, expected zeros")


def _dmb(space: ConfigSpace, features: int | None, shm_id: int | None) -> Iterator[Finding]:
    """Check the region that goes with VIRTIO_F_DMB. Which one that is, its register says."""
    if features is None or not features & Feature.DMB.mask:
        return
    feature = f"VIRTIO_F_DMB (bit {Feature.DMB}) is offered"
    if not features & Feature.ACCESS_PLATFORM.mask:
        yield Finding("DMB-V1", "error", f"{feature}, but VIRTIO_F_ACCESS_PLATFORM (bit 33) is not")
    common = space.virtio(CfgType.COMMON)
    if common and common.length < DmbCommonCfg.size:
        yield Finding("DMB-V2", "error", f"{feature}, but {_name(common)} is too short for the register dmb_shm_id")
    elif shm_id is not None and not space.truncated:
        found = [cap for cap in space.virtio_all(CfgType.SHARED_MEMORY) if cap.id == shm_id & SHM_ID_MASK]
        if len(found) != 1:
            yield Finding("DMB-V2", "error", f"{feature}, and {len(found)} shared memory regions have its id {shm_id}")
        for cap in found:
            yield from _region(space, cap, DMB.clauses)


def _region(space: ConfigSpace, cap: VirtioCapability, clauses: Clauses) -> Iterator[Finding]:
    """Check the memory that a profile's region is, and that it is nothing else, too."""
    bar = space.bar(cap.bar)
    if bar is None:
        return
    name = _name(cap)
    if bar.kind != "memory":
        yield Finding(clauses.inside, "error", f"{name} names BAR {cap.bar}, which is not a memory BAR")
    elif not (bar.is64 and bar.prefetchable) and not space.virtual_function:  # a VF's registers do not tell
        yield Finding(
            clauses.memory,
            "warning",
            f"{name}: BAR {cap.bar} is not 64-bit prefetchable, so its memory may be mapped uncached",
        )
    if cap.offset_in_bar % PAGE:
        yield Finding(clauses.inside, "error", f"{name} begins at {cap.offset_in_bar:#x}, which is not page-aligned")
    if 0 < cap.length < MIN_POOL:
        yield Finding(clauses.inside, "error", f"{name} has {cap.length} bytes, fewer than {MIN_POOL}")
    for claim in _claims(space):
        if claim.by is not cap and claim.bar == cap.bar and claim.begin < cap.end and cap.offset_in_bar < claim.end:
            yield Finding(clauses.inside, "error", f"{name} overlaps {claim.what} in BAR {claim.bar}")


@dataclass(frozen=True, slots=True)
class _Claim:
    """Bytes ``begin`` to ``end`` of a BAR that a capability says are its own."""

    by: CapabilityView
    what: str
    bar: int
    begin: int
    end: int


def _claims(space: ConfigSpace) -> Iterator[_Claim]:
    for cap in space.capabilities:
        if isinstance(cap, VirtioCapability) and cap.cfg_type != CfgType.PCI:
            yield _Claim(cap, _name(cap), cap.bar, cap.offset_in_bar, cap.end)
        elif isinstance(cap.structure, MsixCapability):
            vectors = (cap.structure.control & MSIX_TABLE_SIZE_MASK) + 1
            for what, register, size in (
                ("table", cap.structure.table, vectors * MsixEntry.size),
                ("pending bits", cap.structure.pba, -(-vectors // MSIX_PENDING_BITS) * MSIX_PENDING_BITS // 8),
            ):
                begin = register & ~MSIX_BIR_MASK
                yield _Claim(cap, f"the MSI-X {what}", register & MSIX_BIR_MASK, begin, begin + size)


def _features(features: int | None) -> Iterator[Finding]:
    if features is None:
        return
    if not features & Feature.VERSION_1.mask:
        yield Finding("6.1", "error", "VIRTIO_F_VERSION_1 (bit 32) is not offered: current drivers refuse the device")
    if not features & Feature.ACCESS_PLATFORM.mask:
        yield Finding(
            "SW-P1",
            "warning",
            "VIRTIO_F_ACCESS_PLATFORM (bit 33) is not offered: Linux then bypasses its DMA API, and any pool with it",
        )


def _rom(space: ConfigSpace, features: int | None) -> Iterator[Finding]:
    """Check that a device that is to be kept from guest memory brings no code for the guest's firmware."""
    restricted = space.virtio_all(CfgType.SWIOTLB) or (features or 0) & (Feature.SWIOTLB.mask | Feature.DMB.mask)
    if restricted and space.has_rom:
        yield Finding(
            "PCI 7.5.1.2.4",
            "warning",
            "there is an expansion ROM, which firmware may run with access to all of guest memory:"
            ' attach the device with "rombar":0',
        )


def _name(cap: VirtioCapability) -> str:
    try:
        kind = CfgType(cap.cfg_type).name
    except ValueError:
        kind = "unknown"
    return f"capability {cap.cfg_type} ({kind}) at {cap.offset:#04x}"
