"""How a function presents itself in configuration space: its header, and its capabilities.

BAR 0 has the registers, 32 KiB::

    0x0000  common configuration        0x3000  notifications, 4 bytes a queue
    0x1000  ISR status                  0x4000  MSI-X table
    0x2000  device configuration        0x6000  MSI-X pending bits

BAR 2, 64-bit and prefetchable, is the window. A function that shares another's window has no BAR 2: its capability
names the function that has.
"""

from __future__ import annotations

from typing import Final, TypeVar

from nodma.device.base import Device
from nodma.spec.pci import (
    EXPRESS_TYPE_SHIFT,
    Capability,
    CapId,
    ExpressCapability,
    ExpressDeviceCap,
    ExpressType,
    MsixCapability,
    Type0Header,
)
from nodma.spec.profiles import SELF, Profile
from nodma.spec.virtio_pci import (
    MODERN_DEVICE_BASE,
    VIRTIO_VENDOR,
    CfgType,
    SharedSwiotlbCap,
    VirtioPciCap,
    VirtioPciCap64,
    VirtioPciCfgCap,
    VirtioPciNotifyCap,
)

REGISTER_BAR: Final = 0
WINDOW_BAR: Final = 2
NOTIFY_MULTIPLIER: Final = 4

AREA: Final = 0x1000
COMMON_AREA, ISR_AREA, DEVICE_AREA, NOTIFY_AREA, TABLE_AREA, PBA_AREA = (n * AREA for n in (0, 1, 2, 3, 4, 6))
REGISTER_BAR_BYTES: Final = 8 * AREA
_EXPRESS_VERSION: Final = 2
_WORD: Final = 0xFFFFFFFF

C = TypeVar("C", bound=VirtioPciCap)


def make_header(device: Device) -> Type0Header:
    """Make the header: what kind of device this is."""
    identity = MODERN_DEVICE_BASE + device.device_type
    base_class, subclass = device.pci_class
    return Type0Header.new(
        vendor_id=VIRTIO_VENDOR,
        device_id=identity,
        revision_id=1,
        base_class=base_class,
        subclass=subclass,
        subsystem_vendor_id=VIRTIO_VENDOR,
        subsystem_id=identity,
        interrupt_pin=1,
    )


def make_capabilities(device: Device, profile: Profile, vectors: int, region: VirtioPciCap) -> list[Capability]:
    """Make the capabilities, in list order; ``region`` is the one that describes the window."""
    express = ExpressCapability.new(
        cap_id=CapId.EXPRESS,
        flags=_EXPRESS_VERSION | ExpressType.ENDPOINT << EXPRESS_TYPE_SHIFT,
        device_caps=ExpressDeviceCap.ROLE_BASED_ERROR | ExpressDeviceCap.FLR,
    )
    msix = MsixCapability.new(
        cap_id=CapId.MSIX,
        control=vectors - 1,
        table=TABLE_AREA | REGISTER_BAR,
        pba=PBA_AREA | REGISTER_BAR,
    )
    made = [
        express,
        msix,
        _virtio(VirtioPciCap, CfgType.COMMON, REGISTER_BAR, COMMON_AREA, profile.common.size),
        _virtio(
            VirtioPciNotifyCap,
            CfgType.NOTIFY,
            REGISTER_BAR,
            NOTIFY_AREA,
            NOTIFY_MULTIPLIER * len(device.queues),
            notify_off_multiplier=NOTIFY_MULTIPLIER,
        ),
        _virtio(VirtioPciCap, CfgType.ISR, REGISTER_BAR, ISR_AREA, 1),
    ]
    if device.config.size:
        made.append(_virtio(VirtioPciCap, CfgType.DEVICE, REGISTER_BAR, DEVICE_AREA, device.config.size))
    return [*made, _virtio(VirtioPciCfgCap, CfgType.PCI, 0, 0, 0), region]


def own_region(profile: Profile, length: int) -> VirtioPciCap:
    """Describe the function's own region, which is nobody else's, in the profile's form."""
    made = _virtio(profile.capability, profile.cfg_type, WINDOW_BAR, 0, length & _WORD, id=profile.shm_id or 0)
    if isinstance(made, VirtioPciCap64):
        made.length_hi = length >> 32
    return made


def shared_region(profile: Profile, length: int, owner: int | None) -> VirtioPciCap:
    """Describe a region that functions of this slot share: of ``owner``, or of this function's own if None."""
    return _virtio(
        SharedSwiotlbCap,
        profile.cfg_type,
        WINDOW_BAR,
        0,
        length,
        device=SELF,
        function=SELF if owner is None else owner,
    )


def _virtio(kind: type[C], cfg_type: CfgType, bar: int, offset: int, length: int, **more: int) -> C:
    """Make a virtio capability."""
    return kind.new(
        cap_id=CapId.VENDOR, cap_len=kind.size, cfg_type=cfg_type, bar=bar, offset=offset, length=length, **more
    )
