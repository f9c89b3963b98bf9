"""PCI configuration space (PCI Local Bus 3.0 chapter 6, PCI Express 6.0 chapter 7)."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

from nodma.spec.layout import Layout, blob, le16, le32, u8

CONFIG_SIZE: Final = 256
"""Bytes of a conventional configuration space."""
EXTENDED_CONFIG_SIZE: Final = 4096
"""Bytes of a PCI Express configuration space."""
BAR_COUNT: Final = 6
BRIDGE_BAR_COUNT: Final = 2
DEVICES: Final = 32
"""Devices, or slots, that a bus has."""
FUNCTIONS: Final = 8
"""Functions that a device, in a slot, has at most."""
NO_DEVICE: Final = 0xFFFF
"""The vendor id that is read where nothing answers."""


class Type0Header(Layout):
    """The header of a function that is no bridge (3.0, 6.1)."""

    vendor_id = le16()
    device_id = le16()
    command = le16(rw=True)
    status = le16()
    revision_id = u8()
    prog_if = u8()
    subclass = u8()
    base_class = u8()
    cache_line_size = u8(rw=True)
    latency_timer = u8()
    header_type = u8()
    bist = u8()
    bar0 = le32(rw=True)
    bar1 = le32(rw=True)
    bar2 = le32(rw=True)
    bar3 = le32(rw=True)
    bar4 = le32(rw=True)
    bar5 = le32(rw=True)
    cardbus_cis = le32()
    subsystem_vendor_id = le16()
    subsystem_id = le16()
    rom_address = le32()
    capabilities = u8()
    reserved = blob(7)
    interrupt_line = u8(rw=True)
    interrupt_pin = u8()
    min_gnt = u8()
    max_lat = u8()


class Command(IntFlag):
    """Command register."""

    IO = 1 << 0
    MEMORY = 1 << 1
    BUS_MASTER = 1 << 2
    SPECIAL = 1 << 3
    INVALIDATE = 1 << 4
    VGA_PALETTE = 1 << 5
    PARITY = 1 << 6
    WAIT = 1 << 7
    SERR = 1 << 8
    FAST_BACK = 1 << 9
    INTX_DISABLE = 1 << 10


class PciStatus(IntFlag):
    """Status register."""

    INTERRUPT = 1 << 3
    CAP_LIST = 1 << 4
    MHZ_66 = 1 << 5
    UDF = 1 << 6
    FAST_BACK = 1 << 7
    PARITY = 1 << 8
    SIGNALLED_TARGET_ABORT = 1 << 11
    RECEIVED_TARGET_ABORT = 1 << 12
    RECEIVED_MASTER_ABORT = 1 << 13
    SYSTEM_ERROR = 1 << 14
    PARITY_DETECTED = 1 << 15


class HeaderType(IntEnum):
    """What follows the first 16 bytes of the header."""

    NORMAL = 0
    BRIDGE = 1
    CARDBUS = 2


class BaseClass(IntEnum):
    """What a function is, roughly (PCI Code and ID Assignment, 1)."""

    UNCLASSIFIED = 0x00
    MASS_STORAGE = 0x01
    NETWORK = 0x02
    DISPLAY = 0x03
    MULTIMEDIA = 0x04
    MEMORY = 0x05
    BRIDGE = 0x06
    COMMUNICATION = 0x07
    SYSTEM_PERIPHERAL = 0x08
    INPUT_DEVICE = 0x09
    DOCKING_STATION = 0x0A
    PROCESSOR = 0x0B
    SERIAL_BUS = 0x0C
    WIRELESS = 0x0D
    INTELLIGENT = 0x0E
    SATELLITE = 0x0F
    ENCRYPTION = 0x10
    SIGNAL_PROCESSING = 0x11
    ACCELERATOR = 0x12
    INSTRUMENTATION = 0x13
    UNASSIGNED = 0xFF


class BarFlag(IntFlag):
    """The low bits of a base address register (3.0, 6.2.5.1)."""

    IO = 1 << 0
    TYPE_64 = 1 << 2
    PREFETCH = 1 << 3


BAR_TYPE_MASK: Final = 0x6
BAR_MEM_MASK: Final = ~0xF & 0xFFFFFFFF
BAR_IO_MASK: Final = ~0x3 & 0xFFFFFFFF
ROM_ENABLE: Final = 1
ROM_MASK: Final = ~0x7FF & 0xFFFFFFFF
HEADER_TYPE_MASK: Final = 0x7F
HEADER_MULTIFUNCTION: Final = 0x80
FIRST_CAPABILITY: Final = 0x40
"""Capabilities lie behind the header, 4-byte aligned."""


CAPABILITY_POINTER_MASK: Final = ~0x3
"""The low bits of a pointer to a capability are reserved, and masked off."""


class CapId(IntEnum):
    """Capability ids."""

    PM = 0x01
    AGP = 0x02
    VPD = 0x03
    SLOT = 0x04
    MSI = 0x05
    HOT_SWAP = 0x06
    PCIX = 0x07
    HYPERTRANSPORT = 0x08
    VENDOR = 0x09
    DEBUG_PORT = 0x0A
    RESOURCE_CONTROL = 0x0B
    HOT_PLUG = 0x0C
    BRIDGE_SSID = 0x0D
    AGP8X = 0x0E
    SECURE = 0x0F
    EXPRESS = 0x10
    MSIX = 0x11
    SATA = 0x12
    AF = 0x13
    EA = 0x14


class Capability(Layout):
    """What every capability begins with."""

    cap_id = u8()
    cap_next = u8()


class VendorCapability(Capability):
    """A vendor-specific capability; ``cap_len`` is its whole length in bytes."""

    cap_len = u8()


class MsixControl(IntFlag):
    """MSI-X message control."""

    FUNCTION_MASK = 1 << 14
    ENABLE = 1 << 15


class MsixCapability(Capability):
    """MSI-X capability (3.0, 6.8.2). The table's size less one is in ``control``."""

    control = le16(rw=MsixControl.ENABLE | MsixControl.FUNCTION_MASK)
    table = le32()
    pba = le32()


MSIX_TABLE_SIZE_MASK: Final = 0x7FF
MSIX_BIR_MASK: Final = 0x7
"""The low bits of ``table`` and ``pba`` name the BAR, the others the offset."""


class MsixEntry(Layout):
    """One entry of the MSI-X table."""

    address_low = le32(rw=True)
    address_high = le32(rw=True)
    data = le32(rw=True)
    vector_control = le32(rw=True)


MSIX_VECTOR_MASKED: Final = 1
MSIX_PENDING_BITS: Final = 64
"""Pending bits come in words of so many, one bit a vector."""


class ExpressCapability(Capability):
    """PCI Express capability, version 2 (PCIe 7.5.3)."""

    flags = le16()
    device_caps = le32()
    device_control = le16(rw=True)
    device_status = le16()
    link_caps = le32()
    link_control = le16()
    link_status = le16()
    slot_caps = le32()
    slot_control = le16()
    slot_status = le16()
    root_control = le16()
    root_caps = le16()
    root_status = le32()
    device_caps2 = le32()
    device_control2 = le16(rw=True)
    device_status2 = le16()
    link_caps2 = le32()
    link_control2 = le16()
    link_status2 = le16()
    slot_caps2 = le32()
    slot_control2 = le16()
    slot_status2 = le16()


EXPRESS_VERSION_MASK: Final = 0xF
EXPRESS_TYPE_SHIFT: Final = 4
EXPRESS_TYPE_MASK: Final = 0xF
EXPRESS_MESSAGE_SHIFT: Final = 9
EXPRESS_MESSAGE_MASK: Final = 0x1F
"""In ``flags``: which MSI or MSI-X vector the capability's own interrupts use."""
EXPRESS_PAYLOAD_MASK: Final = 0x7
EXPRESS_PAYLOAD_UNIT: Final = 128
"""Bytes that a payload or read request field of 0 stands for; each step doubles them."""
EXPRESS_CONTROL_PAYLOAD_SHIFT: Final = 5
EXPRESS_CONTROL_READ_REQUEST_SHIFT: Final = 12
LINK_SPEED_MASK: Final = 0xF
LINK_WIDTH_SHIFT: Final = 4
LINK_WIDTH_MASK: Final = 0x3F
LINK_SPEEDS: Final = {1: "2.5GT/s", 2: "5GT/s", 3: "8GT/s", 4: "16GT/s", 5: "32GT/s", 6: "64GT/s"}


class ExpressType(IntEnum):
    """Device/port type of a PCI Express function."""

    ENDPOINT = 0
    LEGACY_ENDPOINT = 1
    ROOT_PORT = 4
    UPSTREAM_PORT = 5
    DOWNSTREAM_PORT = 6
    PCIE_TO_PCI = 7
    PCI_TO_PCIE = 8
    RC_ENDPOINT = 9
    RC_EVENT_COLLECTOR = 10


class ExpressDeviceCap(IntFlag):
    """Device capabilities."""

    EXTENDED_TAG = 1 << 5
    ROLE_BASED_ERROR = 1 << 15
    FLR = 1 << 28


class ExpressDeviceControl(IntFlag):
    """Device control."""

    CORRECTABLE = 1 << 0
    NON_FATAL = 1 << 1
    FATAL = 1 << 2
    UNSUPPORTED_REQUEST = 1 << 3
    RELAXED_ORDERING = 1 << 4
    EXTENDED_TAG = 1 << 8
    NO_SNOOP = 1 << 11
    INITIATE_FLR = 1 << 15


class ExpressDeviceStatus(IntFlag):
    """Device status."""

    CORRECTABLE = 1 << 0
    NON_FATAL = 1 << 1
    FATAL = 1 << 2
    UNSUPPORTED_REQUEST = 1 << 3
    AUX_POWER = 1 << 4
    PENDING = 1 << 5


class AfCapability(Capability):
    """Advanced features capability (Advanced Capabilities for Conventional PCI)."""

    length = u8()
    features = u8()
    control = u8()
    status = u8()


class AfFeature(IntFlag):
    """Advanced features: which there are."""

    TRANSACTIONS_PENDING = 1 << 0
    FLR = 1 << 1


class AfStatus(IntFlag):
    """Advanced features: status."""

    TRANSACTIONS_PENDING = 1 << 0


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


class MsiCapability(Capability):
    """MSI capability (3.0, 6.8.1), the part that every form has."""

    control = le16(rw=True)
    address = le32(rw=True)


class MsiCapability32(MsiCapability):
    """The form with 32-bit addresses; the last two only if it is maskable."""

    data = le16(rw=True)
    reserved = le16()
    masked = le32(rw=True)
    pending = le32()


class MsiCapability64(MsiCapability):
    """The form with 64-bit addresses; the last two only if it is maskable."""

    address_high = le32(rw=True)
    data = le16(rw=True)
    reserved = le16()
    masked = le32(rw=True)
    pending = le32()


class MsiControl(IntFlag):
    """MSI message control."""

    ENABLE = 1 << 0
    ADDRESS_64 = 1 << 7
    MASKABLE = 1 << 8


MSI_CAPABLE_SHIFT: Final = 1
MSI_CAPABLE_MASK: Final = 0x7
"""log2 of the vectors that the function asks for."""
MSI_ENABLED_SHIFT: Final = 4
"""Likewise, of those that it was given; as wide as MSI_CAPABLE_MASK."""


class ExtendedCapability(Layout):
    """What every capability beyond the first 256 bytes begins with (PCIe 7.6.3)."""

    header = le32()

    @property
    def cap_id(self) -> int:
        """The capability's id."""
        return self.header & 0xFFFF

    @property
    def version(self) -> int:
        """Its version."""
        return self.header >> 16 & 0xF

    @property
    def next(self) -> int:
        """Where the next one is, 0 if there is none."""
        return self.header >> 20 & ~3


class ExtCapId(IntEnum):
    """Extended capability ids."""

    NULL = 0x00
    AER = 0x01
    VIRTUAL_CHANNEL = 0x02
    SERIAL_NUMBER = 0x03
    POWER_BUDGET = 0x04
    VENDOR = 0x0B
    ACS = 0x0D
    ARI = 0x0E
    ATS = 0x0F
    SR_IOV = 0x10
    MULTICAST = 0x12
    PAGE_REQUEST = 0x13
    RESIZABLE_BAR = 0x15
    DYNAMIC_POWER = 0x16
    TPH = 0x17
    LTR = 0x18
    SECONDARY_EXPRESS = 0x19
    PASID = 0x1B
    DPC = 0x1D
    L1_SUBSTATES = 0x1E
    PTM = 0x1F
    DESIGNATED_VENDOR = 0x23
    VF_RESIZABLE_BAR = 0x24
    DATA_LINK_FEATURE = 0x25
    PHYSICAL_16GT = 0x26
    LANE_MARGINING = 0x27
    PHYSICAL_32GT = 0x2A
    DOE = 0x2E
    IDE = 0x30


class SerialNumberCapability(ExtendedCapability):
    """Device serial number (PCIe 7.9.3)."""

    low = le32()
    high = le32()
