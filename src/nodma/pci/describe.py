"""Say in lspci's words what a capability is (one line), and what is in it (more lines)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import IntFlag
from typing import Any, Final

from nodma.pci.config import CapabilityView, VirtioCapability
from nodma.spec import pci
from nodma.spec.layout import Layout
from nodma.spec.pci import CapId, ExpressType, ExtCapId
from nodma.spec.profiles import SELF
from nodma.spec.virtio_pci import CfgType, SharedSwiotlbCap, VirtioPciCap, VirtioPciCap64, VirtioPciVendorCap

CFG_TYPE_NAMES: Final[Mapping[int, str]] = {
    CfgType.COMMON: "CommonCfg",
    CfgType.NOTIFY: "Notify",
    CfgType.ISR: "ISR",
    CfgType.DEVICE: "DeviceCfg",
    CfgType.PCI: "PciCfg",
    CfgType.SHARED_MEMORY: "SharedMemory",
    CfgType.VENDOR: "VendorData",
    CfgType.SWIOTLB: "SWIOTLB",
}
"""lspci's names; those it has none for are in its manner."""

CAPABILITY_NAMES: Final[Mapping[int, str]] = {
    CapId.PM: "Power Management",
    CapId.AGP: "AGP",
    CapId.VPD: "Vital Product Data",
    CapId.SLOT: "Slot ID",
    CapId.MSI: "MSI",
    CapId.HOT_SWAP: "CompactPCI hot-swap",
    CapId.PCIX: "PCI-X",
    CapId.HYPERTRANSPORT: "HyperTransport",
    CapId.VENDOR: "Vendor Specific Information",
    CapId.DEBUG_PORT: "Debug port",
    CapId.RESOURCE_CONTROL: "CompactPCI central resource control",
    CapId.HOT_PLUG: "Hot-plug capable",
    CapId.BRIDGE_SSID: "Subsystem",
    CapId.AGP8X: "AGP3",
    CapId.SECURE: "Secure device",
    CapId.EXPRESS: "Express",
    CapId.MSIX: "MSI-X",
    CapId.SATA: "SATA HBA",
    CapId.AF: "PCI Advanced Features",
    CapId.EA: "Enhanced Allocation (EA)",
}

EXTENDED_NAMES: Final[Mapping[int, str]] = {
    ExtCapId.NULL: "Null",
    ExtCapId.AER: "Advanced Error Reporting",
    ExtCapId.VIRTUAL_CHANNEL: "Virtual Channel",
    ExtCapId.SERIAL_NUMBER: "Device Serial Number",
    ExtCapId.POWER_BUDGET: "Power Budgeting",
    ExtCapId.VENDOR: "Vendor Specific Information",
    ExtCapId.ACS: "Access Control Services",
    ExtCapId.ARI: "Alternative Routing-ID Interpretation (ARI)",
    ExtCapId.ATS: "Address Translation Service (ATS)",
    ExtCapId.SR_IOV: "Single Root I/O Virtualization (SR-IOV)",
    ExtCapId.MULTICAST: "Multicast",
    ExtCapId.PAGE_REQUEST: "Page Request Interface (PRI)",
    ExtCapId.RESIZABLE_BAR: "Physical Resizable BAR",
    ExtCapId.DYNAMIC_POWER: "Dynamic Power Allocation",
    ExtCapId.TPH: "Transaction Processing Hints",
    ExtCapId.LTR: "Latency Tolerance Reporting",
    ExtCapId.SECONDARY_EXPRESS: "Secondary PCI Express",
    ExtCapId.PASID: "Process Address Space ID (PASID)",
    ExtCapId.DPC: "Downstream Port Containment",
    ExtCapId.L1_SUBSTATES: "L1 PM Substates",
    ExtCapId.PTM: "Precision Time Measurement",
    ExtCapId.DESIGNATED_VENDOR: "Designated Vendor-Specific",
    ExtCapId.VF_RESIZABLE_BAR: "Virtual Resizable BAR",
    ExtCapId.DATA_LINK_FEATURE: "Data Link Feature",
    ExtCapId.PHYSICAL_16GT: "Physical Layer 16.0 GT/s",
    ExtCapId.LANE_MARGINING: "Lane Margining at the Receiver",
    ExtCapId.PHYSICAL_32GT: "Physical Layer 32.0 GT/s",
    ExtCapId.DOE: "Data Object Exchange",
    ExtCapId.IDE: "Integrity & Data Encryption",
}

_EXPRESS_TYPES: Final[Mapping[int, str]] = {
    ExpressType.ENDPOINT: "Endpoint",
    ExpressType.LEGACY_ENDPOINT: "Legacy Endpoint",
    ExpressType.ROOT_PORT: "Root Port",
    ExpressType.UPSTREAM_PORT: "Upstream Port",
    ExpressType.DOWNSTREAM_PORT: "Downstream Port",
    ExpressType.PCIE_TO_PCI: "PCI-Express to PCI/PCI-X Bridge",
    ExpressType.PCI_TO_PCIE: "PCI/PCI-X to PCI-Express Bridge",
    ExpressType.RC_ENDPOINT: "Root Complex Integrated Endpoint",
    ExpressType.RC_EVENT_COLLECTOR: "Root Complex Event Collector",
}
_EXPRESS_FEATURES: Final = (
    ("ExtTag", pci.ExpressDeviceCap.EXTENDED_TAG),
    ("RBE", pci.ExpressDeviceCap.ROLE_BASED_ERROR),
    ("FLReset", pci.ExpressDeviceCap.FLR),
)
_EXPRESS_CONTROL: Final = (
    ("CorrErr", pci.ExpressDeviceControl.CORRECTABLE),
    ("NonFatalErr", pci.ExpressDeviceControl.NON_FATAL),
    ("FatalErr", pci.ExpressDeviceControl.FATAL),
    ("UnsupReq", pci.ExpressDeviceControl.UNSUPPORTED_REQUEST),
    ("RlxdOrd", pci.ExpressDeviceControl.RELAXED_ORDERING),
    ("ExtTag", pci.ExpressDeviceControl.EXTENDED_TAG),
    ("NoSnoop", pci.ExpressDeviceControl.NO_SNOOP),
)
_EXPRESS_STATUS: Final = (
    ("CorrErr", pci.ExpressDeviceStatus.CORRECTABLE),
    ("NonFatalErr", pci.ExpressDeviceStatus.NON_FATAL),
    ("FatalErr", pci.ExpressDeviceStatus.FATAL),
    ("UnsupReq", pci.ExpressDeviceStatus.UNSUPPORTED_REQUEST),
    ("AuxPwr", pci.ExpressDeviceStatus.AUX_POWER),
    ("TransPend", pci.ExpressDeviceStatus.PENDING),
)
_PM_FEATURES: Final = (
    ("PMEClk", pci.PmFeature.CLOCK),
    ("DSI", pci.PmFeature.DEVICE_SPECIFIC_INIT),
    ("D1", pci.PmFeature.D1),
    ("D2", pci.PmFeature.D2),
)
_PM_WAKES: Final = (
    ("D0", pci.PmFeature.PME_D0),
    ("D1", pci.PmFeature.PME_D1),
    ("D2", pci.PmFeature.PME_D2),
    ("D3hot", pci.PmFeature.PME_D3_HOT),
    ("D3cold", pci.PmFeature.PME_D3_COLD),
)
_PM_STATUS: Final = (
    ("NoSoftRst", pci.PmControl.NO_SOFT_RESET),
    ("PME-Enable", pci.PmControl.PME_ENABLE),
    ("PME", pci.PmControl.PME_STATUS),
)


def flags(value: int, names: Iterable[tuple[str, IntFlag]]) -> str:
    """Write flags as lspci does: each with + or - after its name."""
    return " ".join(f"{name}{'+' if value & flag else '-'}" for name, flag in names)


def summary(cap: CapabilityView) -> str:
    """Return in a line what a capability is."""
    if isinstance(cap.structure, VirtioPciCap | VirtioPciVendorCap):
        kind = cap.structure.cfg_type
        return f"VirtIO: {CFG_TYPE_NAMES.get(kind, f'<unknown type {kind}>')}"
    told = _SUMMARIES.get(type(cap.structure))
    name = CAPABILITY_NAMES.get(cap.cap_id, f"Capability ID {cap.cap_id:#04x}")
    return told(cap.structure) if told else name


def details(cap: CapabilityView) -> list[str]:
    """Return what is in a capability, a line for each part."""
    if isinstance(cap, VirtioCapability):
        lines = list(_virtio(cap))
    else:
        told = _DETAILS.get(type(cap.structure))
        lines = list(told(cap.structure)) if told else []
    more = cap.raw[cap.structure.size :]
    return [*lines, f"Data: {more.hex(' ')}"] if more else lines


def extended_summary(cap: CapabilityView) -> str:
    """Return in a line what an extended capability is."""
    name = EXTENDED_NAMES.get(cap.cap_id, f"Extended Capability ID {cap.cap_id:#06x}")
    version = f" v{cap.structure.version}" if isinstance(cap.structure, pci.ExtendedCapability) else ""
    if isinstance(cap.structure, pci.SerialNumberCapability):
        number = (cap.structure.high << 32 | cap.structure.low).to_bytes(8, "big")
        return f"{name} {number.hex('-')}"
    return name + version


# Virtio


def _virtio(cap: VirtioCapability) -> Iterator[str]:
    if isinstance(cap.structure, VirtioPciCap64):
        yield f"BAR={cap.bar} offset={cap.offset_in_bar:016x} size={cap.length:016x} id={cap.id}"
    elif cap.cfg_type == CfgType.NOTIFY:
        yield f"{_place(cap)} multiplier={cap.notify_off_multiplier:08x}"
    else:
        yield _place(cap)
    if isinstance(cap.structure, SharedSwiotlbCap):
        yield f"Owner: {_owner(cap)}"


def _place(cap: VirtioCapability) -> str:
    return f"BAR={cap.bar} offset={cap.offset_in_bar:08x} size={cap.length:08x}"


def _owner(cap: VirtioCapability) -> str:
    device, function = cap.owner
    if cap.owner == (SELF, SELF):
        return "self, and others may use it"
    return f"function {function} of this device" if device == SELF else f"device={device:02x} function={function:x}"


def _vendor_data(cap: VirtioPciVendorCap) -> Iterator[str]:
    yield f"Vendor={cap.vendor_id:04x} length={cap.cap_len}"


# Capabilities of PCI


def _pm(cap: pci.PmCapability) -> str:
    return f"Power Management version {cap.capabilities & pci.PM_VERSION_MASK}"


def _pm_details(cap: pci.PmCapability) -> Iterator[str]:
    wakes = flags(cap.capabilities, _PM_WAKES).replace(" ", ",")
    yield f"Flags: {flags(cap.capabilities, _PM_FEATURES)} PME({wakes})"
    yield f"Status: D{cap.control & pci.PM_STATE_MASK} {flags(cap.control, _PM_STATUS)}"


def _msi(cap: pci.MsiCapability) -> str:
    given = 1 << (cap.control >> pci.MSI_ENABLED_SHIFT & pci.MSI_CAPABLE_MASK)
    wanted = 1 << (cap.control >> pci.MSI_CAPABLE_SHIFT & pci.MSI_CAPABLE_MASK)
    enabled = flags(cap.control, (("Enable", pci.MsiControl.ENABLE),))
    forms = flags(cap.control, (("Maskable", pci.MsiControl.MASKABLE), ("64bit", pci.MsiControl.ADDRESS_64)))
    return f"MSI: {enabled} Count={given}/{wanted} {forms}"


def _msi_details(cap: pci.MsiCapability32 | pci.MsiCapability64) -> Iterator[str]:
    high = f"{cap.address_high:08x}" if isinstance(cap, pci.MsiCapability64) else ""
    yield f"Address: {high}{cap.address:08x}  Data: {cap.data:04x}"
    if cap.control & pci.MsiControl.MASKABLE:
        yield f"Masking: {cap.masked:08x}  Pending: {cap.pending:08x}"


def _msix(cap: pci.MsixCapability) -> str:
    enabled = flags(cap.control, (("Enable", pci.MsixControl.ENABLE),))
    masked = flags(cap.control, (("Masked", pci.MsixControl.FUNCTION_MASK),))
    return f"MSI-X: {enabled} Count={(cap.control & pci.MSIX_TABLE_SIZE_MASK) + 1} {masked}"


def _msix_details(cap: pci.MsixCapability) -> Iterator[str]:
    for name, register in (("Vector table", cap.table), ("PBA", cap.pba)):
        yield f"{name}: BAR={register & pci.MSIX_BIR_MASK} offset={register & ~pci.MSIX_BIR_MASK:08x}"


def _af_details(cap: pci.AfCapability) -> Iterator[str]:
    can = pci.AfFeature
    yield f"AFCap: {flags(cap.features, (('TP', can.TRANSACTIONS_PENDING), ('FLR', can.FLR)))}"
    yield f"AFStatus: {flags(cap.status, (('TP', pci.AfStatus.TRANSACTIONS_PENDING),))}"


def _express(cap: pci.ExpressCapability) -> str:
    kind = cap.flags >> pci.EXPRESS_TYPE_SHIFT & pci.EXPRESS_TYPE_MASK
    message = cap.flags >> pci.EXPRESS_MESSAGE_SHIFT & pci.EXPRESS_MESSAGE_MASK
    name = _EXPRESS_TYPES.get(kind, f"Unknown type {kind}")
    return f"Express (v{cap.flags & pci.EXPRESS_VERSION_MASK}) {name}, IntMsgNum {message}"


def _express_details(cap: pci.ExpressCapability) -> Iterator[str]:
    payload = _bytes(cap.device_caps, 0)
    yield f"DevCap: MaxPayload {payload} bytes, {flags(cap.device_caps, _EXPRESS_FEATURES)}"
    yield f"DevCtl: {flags(cap.device_control, _EXPRESS_CONTROL)}"
    payload = _bytes(cap.device_control, pci.EXPRESS_CONTROL_PAYLOAD_SHIFT)
    request = _bytes(cap.device_control, pci.EXPRESS_CONTROL_READ_REQUEST_SHIFT)
    yield f"        MaxPayload {payload} bytes, MaxReadReq {request} bytes"
    yield f"DevSta: {flags(cap.device_status, _EXPRESS_STATUS)}"
    yield f"LnkCap: {_link(cap.link_caps)}"
    yield f"LnkSta: {_link(cap.link_status)}"


def _bytes(register: int, shift: int) -> int:
    return pci.EXPRESS_PAYLOAD_UNIT << (register >> shift & pci.EXPRESS_PAYLOAD_MASK)


def _link(register: int) -> str:
    speed = pci.LINK_SPEEDS.get(register & pci.LINK_SPEED_MASK, "unknown")
    return f"Speed {speed}, Width x{register >> pci.LINK_WIDTH_SHIFT & pci.LINK_WIDTH_MASK}"


_SUMMARIES: Final[Mapping[type[Layout], Callable[[Any], str]]] = {
    pci.PmCapability: _pm,
    pci.MsiCapability32: _msi,
    pci.MsiCapability64: _msi,
    pci.MsixCapability: _msix,
    pci.ExpressCapability: _express,
}
_DETAILS: Final[Mapping[type[Layout], Callable[[Any], Iterator[str]]]] = {
    VirtioPciVendorCap: _vendor_data,
    pci.PmCapability: _pm_details,
    pci.MsiCapability32: _msi_details,
    pci.MsiCapability64: _msi_details,
    pci.MsixCapability: _msix_details,
    pci.AfCapability: _af_details,
    pci.ExpressCapability: _express_details,
}
