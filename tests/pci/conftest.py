"""A virtio block device with nothing wrong, from parts that tests replace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import pytest

from nodma.spec.layout import Layout
from nodma.spec.pci import (
    CONFIG_SIZE,
    FIRST_CAPABILITY,
    BarFlag,
    Capability,
    CapId,
    Command,
    MsixCapability,
    PciStatus,
    Type0Header,
    VendorCapability,
)
from nodma.spec.virtio import DeviceType
from nodma.spec.virtio_pci import (
    MODERN_DEVICE_BASE,
    VIRTIO_VENDOR,
    CfgType,
    VirtioPciCap,
    VirtioPciCfgCap,
    VirtioPciNotifyCap,
)

C = TypeVar("C", bound=VendorCapability)
Assemble = Callable[..., bytes]
MakeVirtio = Callable[..., VendorCapability]


@pytest.fixture
def virtio() -> MakeVirtio:
    """Make a virtio capability: ``virtio(CfgType.ISR, VirtioPciCap, offset=0x1000, length=1)``."""

    def make(cfg_type: int, layout: type[C], **values: int) -> C:
        return layout.new(**({"cap_id": CapId.VENDOR, "cap_len": layout.size, "cfg_type": cfg_type} | values))

    return make


@pytest.fixture
def good(virtio: MakeVirtio) -> dict[str, Layout]:
    """The capabilities of a good device, by name."""
    return {
        "msix": MsixCapability.new(cap_id=CapId.MSIX, control=1, table=0x4000, pba=0x6000),
        "common": virtio(CfgType.COMMON, VirtioPciCap, offset=0, length=64),
        "notify": virtio(CfgType.NOTIFY, VirtioPciNotifyCap, offset=0x3000, length=4, notify_off_multiplier=4),
        "isr": virtio(CfgType.ISR, VirtioPciCap, offset=0x1000, length=1),
        "device": virtio(CfgType.DEVICE, VirtioPciCap, offset=0x2000, length=60),
        "pci": virtio(CfgType.PCI, VirtioPciCfgCap),
        "swiotlb": virtio(CfgType.SWIOTLB, VirtioPciCap, bar=2, offset=0, length=16 << 20),
    }


@pytest.fixture
def assemble() -> Assemble:
    """Put a configuration space together: capabilities in list order, and header fields."""

    def put(capabilities: Sequence[Layout], size: int = CONFIG_SIZE, /, **header: int) -> bytes:
        fields: dict[str, int] = {
            "vendor_id": VIRTIO_VENDOR,
            "device_id": MODERN_DEVICE_BASE + DeviceType.BLOCK,
            "command": Command.MEMORY,
            "status": PciStatus.CAP_LIST,
            "base_class": 1,
            "subclass": 0x80,
            "revision_id": 1,
            "bar0": 0xFEBD0000,
            "bar2": BarFlag.TYPE_64 | BarFlag.PREFETCH,
            "bar3": 0x40,
        }
        data = bytearray(size)
        data[: Type0Header.size] = bytes(Type0Header.new(**(fields | header)))
        at, link = FIRST_CAPABILITY, Type0Header.capabilities.offset
        for capability in capabilities:
            data[link] = at
            data[at : at + capability.size] = bytes(capability)
            link = at + Capability.cap_next.offset
            at += -(-capability.size // 4) * 4
        return bytes(data)

    return put
