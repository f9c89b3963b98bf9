"""Restricted DMA for virtio: the wire profiles, and the clauses that both ends must keep.

The clauses' ids are this project's; their sources are the RFC of 2 April 2025 (``SW-``) and
virtio-spec issue 248 (``DMB-``).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from nodma.spec.virtio import Feature
from nodma.spec.virtio_pci import CfgType


@dataclass(frozen=True, slots=True)
class Profile:
    """What one way of restricting DMA puts on the wire."""

    name: str
    feature: Feature
    cfg_type: CfgType


SWIOTLB: Final = Profile("swiotlb", Feature.SWIOTLB, CfgType.SWIOTLB)
"""Bus addresses inside the region that capability 10 tells of."""

PROFILES: Final = {profile.name: profile for profile in (SWIOTLB,)}


class Policy(StrEnum):
    """What a device does with a driver that does not accept the profile's feature (SW-V1)."""

    REQUIRED = "required"
    """Refuse FEATURES_OK."""
    HOPEFUL = "hopeful"
    """Accept it: a platform may force it through the pool anyway. Catch what lies outside."""


MIN_POOL: Final = 64 << 10
MAX_POOL: Final = 4 << 30
MAX_REGION: Final = MAX_POOL - 4096
"""The longest region that 32-bit lengths can tell of in whole pages: of a 4 GiB BAR, all but the last."""

SELF: Final = 0xFF
"""In the sharing extension's device and function: the one that presents the capability."""

CLAUSES: Final = {
    "SW-D1": "the driver SHOULD accept VIRTIO_F_SWIOTLB if it is offered",
    "SW-D2": "the driver MUST, having accepted it, pass only addresses inside the buffer",
    "SW-D3": "the driver SHOULD prefer the buffer even where the feature is not negotiated",
    "SW-V1": "the device MAY refuse to operate if the feature is not accepted",
    "SW-V2": "the device SHOULD offer the feature if it presents the capability",
    "SW-V3": "the device MUST NOT offer the feature when its transport provides no buffer",
    "SW-P1": "VIRTIO_F_ACCESS_PLATFORM's translation does not apply to addresses inside the buffer",
}
