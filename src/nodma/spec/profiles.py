"""Restricted DMA for virtio: the wire profiles, and the clauses that both ends must keep.

All that differs between two profiles is in a :class:`Profile`: numbers, and what counts as an address. The clauses'
ids are this project's; their sources are the RFC of 2 April 2025 (``SW-``), virtio-spec issue 248 (``DMB-``), and the
thread that the RFC came from (``SHARE``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from nodma.spec import dmb
from nodma.spec.virtio import Feature
from nodma.spec.virtio_pci import CfgType, CommonCfg, VirtioPciCap, VirtioPciCap64

MIN_POOL: Final = 64 << 10
MAX_POOL: Final = 4 << 30
PAGE: Final = 4096
"""A region begins on one: it is mapped."""
_MAX_LE32_REGION: Final = MAX_POOL - PAGE
"""The longest region that 32-bit lengths can describe in whole pages: of a 4 GiB BAR, all but the last."""

SELF: Final = 0xFF
"""In the sharing extension's device and function: the one that presents the capability."""


class Policy(StrEnum):
    """What a device does with a driver that does not accept the profile's feature (SW-V1)."""

    REQUIRED = "required"
    """Refuse FEATURES_OK."""
    HOPEFUL = "hopeful"
    """Accept it: a platform may force it through the pool anyway. Catch what lies outside."""


@dataclass(frozen=True, slots=True)
class AddressRange:
    """Which addresses are the region's: less ``base`` they are offsets in it, in ``[first, limit)``; bytes."""

    base: int
    first: int
    limit: int


def bus_addresses(region: int | None, length: int) -> AddressRange | None:
    """An address is where the region is on the bus. It moves with its BAR; while that decodes none, none is good."""
    return None if region is None else AddressRange(region, 0, length)


def offsets(_: int | None, length: int) -> AddressRange | None:
    """An address counts from the region's start, wherever the BAR is (DMB-V3); 0 is reserved (DMB-D2)."""
    return AddressRange(0, 1, length)


@dataclass(frozen=True, slots=True)
class Clauses:
    """Which clause says what."""

    refuse: str
    """A driver that does not accept the feature may, or must, be refused."""
    offer: str
    """The feature is offered where the region is presented."""
    region: str
    """The region is presented where the feature is offered."""
    inside: str
    """Addresses are inside the region."""
    memory: str
    """What the region's memory should be."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What one way of restricting DMA puts on the wire."""

    name: str
    feature: Feature
    needs: int
    """Features, as a mask, without which a driver must not accept ``feature``."""
    beside: int
    """Features that a driver accepts with it where they are offered."""
    cfg_type: CfgType
    capability: type[VirtioPciCap]
    """The form of the capability that describes the region."""
    shm_id: int | None
    """The region's id among the device's shared memory, which ``common`` names; None: it has none."""
    common: type[CommonCfg]
    address_range: Callable[[int | None, int], AddressRange | None]
    """What is an address, from where on the bus the region is (None: nowhere) and its length in bytes."""
    max_region: int
    """Bytes of the longest region that ``capability`` can describe."""
    policies: tuple[Policy, ...]
    shareable: bool
    """Whether functions can share a region: whether a capability can name the function that has it."""
    clauses: Clauses


SWIOTLB: Final = Profile(
    name="swiotlb",
    feature=Feature.SWIOTLB,
    needs=0,
    beside=0,
    cfg_type=CfgType.SWIOTLB,
    capability=VirtioPciCap,
    shm_id=None,
    common=CommonCfg,
    address_range=bus_addresses,
    max_region=_MAX_LE32_REGION,
    policies=(Policy.REQUIRED, Policy.HOPEFUL),
    shareable=True,
    clauses=Clauses(refuse="SW-V1", offer="SW-V2", region="SW-V3", inside="SW-D2", memory="SW-D3"),
)
"""Bus addresses inside the region that capability 10 describes."""

DMB: Final = Profile(
    name="dmb",
    feature=Feature.DMB,
    needs=Feature.VERSION_1.mask | Feature.ACCESS_PLATFORM.mask,
    beside=Feature.ORDER_PLATFORM.mask,
    cfg_type=CfgType.SHARED_MEMORY,
    capability=VirtioPciCap64,
    shm_id=dmb.SHM_ID,
    common=dmb.DmbCommonCfg,
    address_range=offsets,
    max_region=MAX_POOL,
    # What a driver without the feature takes for an address may be an offset inside: the device could not tell, and
    # would read and write what nobody meant. So it cannot work without (DMB-V6), and none may hope that it does.
    policies=(Policy.REQUIRED,),
    shareable=False,
    clauses=Clauses(refuse="DMB-V6", offer="DMB-V2", region="DMB-V2", inside="DMB-V4", memory="DMB-V1"),
)
"""Offsets in the shared memory region that the common configuration names. Its numbers are provisional."""

PROFILES: Final = {profile.name: profile for profile in (SWIOTLB, DMB)}

PREFERENCE: Final = (DMB, SWIOTLB)
"""Which one a driver takes of a device that presents both: offsets need no trust in where the BAR is."""

CLAUSES: Final = {
    "SW-D1": "the driver SHOULD accept VIRTIO_F_SWIOTLB if it is offered",
    "SW-D2": "the driver MUST, having accepted it, pass only addresses inside the buffer",
    "SW-D3": "the driver SHOULD prefer the buffer even where the feature is not negotiated",
    "SW-V1": "the device MAY refuse to operate if the feature is not accepted",
    "SW-V2": "the device SHOULD offer the feature if it presents the capability",
    "SW-V3": "the device MUST NOT offer the feature when its transport provides no buffer",
    "SW-P1": "VIRTIO_F_ACCESS_PLATFORM's translation does not apply to addresses inside the buffer",
    "DMB-V1": "the device MUST offer ACCESS_PLATFORM with VIRTIO_F_DMB, and ORDER_PLATFORM if the region needs it",
    "DMB-V2": "the device MUST expose exactly one region for it, with an id that its device type does not define",
    "DMB-V3": "the device MUST read every address as an offset, never as a physical or bus address",
    "DMB-V4": "the device MUST check every structure against the region, and set DEVICE_NEEDS_RESET on failure",
    "DMB-V5": "the device MUST NOT touch memory outside the region to process a virtqueue",
    "DMB-V6": "the device MUST refuse FEATURES_OK if it cannot work without the feature and it is not accepted",
    "DMB-V7": "the device MUST NOT move or resize the region across a reset that queues should survive",
    "DMB-D1": "the driver MUST accept it only with VERSION_1, ACCESS_PLATFORM, and ORDER_PLATFORM where offered",
    "DMB-D2": "the driver MUST place rings, indirect tables and buffers inside the region, never at offset 0",
    "DMB-D3": 'the driver MUST take "pool full" as back-pressure, not as an error',
    "SHARE": "a capability 10 that names another function MUST be checked before it is believed",
}
