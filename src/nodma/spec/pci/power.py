"""The power management capability (PCI Express 6.0, 7.5.2)."""

from __future__ import annotations

from enum import IntFlag
from typing import Final

from nodma.spec.layout import le16, u8
from nodma.spec.pci.capability import Capability


class PmFeature(IntFlag):
    """Power management capabilities."""

    CLOCK = 1 << 3
    DEVICE_SPECIFIC_INIT = 1 << 5
    D1 = 1 << 9
    D2 = 1 << 10
    PME_D0 = 1 << 11
    PME_D1 = 1 << 12
    PME_D2 = 1 << 13
    PME_D3_HOT = 1 << 14
    PME_D3_COLD = 1 << 15


class PmControl(IntFlag):
    """Power management control and status."""

    NO_SOFT_RESET = 1 << 3
    PME_ENABLE = 1 << 8
    PME_STATUS = 1 << 15


PM_VERSION_MASK: Final = 0x7
PM_STATE_MASK: Final = 0x3
"""In ``control``: the state D0 to D3."""


class PmCapability(Capability):
    """Power management capability."""

    capabilities = le16()
    control = le16(rw=True)
    bridge = u8()
    data = u8()
