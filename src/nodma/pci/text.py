"""Print what is known of a function in lspci's manner. However hostile the bytes, the text is bounded and plain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

from nodma.pci.config import Bar, ConfigSpace
from nodma.pci.describe import details, extended_summary, flags, summary
from nodma.pci.report import Report, VirtioState, device_name, feature_names
from nodma.spec import pci
from nodma.spec.pci import BaseClass, Command, HeaderType, PciStatus
from nodma.spec.virtio import Status
from nodma.spec.virtio_blk import SECTOR, BlkConfig
from nodma.units import show_size

_COMMAND: Final = (
    ("I/O", Command.IO),
    ("Mem", Command.MEMORY),
    ("BusMaster", Command.BUS_MASTER),
    ("SpecCycle", Command.SPECIAL),
    ("MemWINV", Command.INVALIDATE),
    ("VGASnoop", Command.VGA_PALETTE),
    ("ParErr", Command.PARITY),
    ("Stepping", Command.WAIT),
    ("SERR", Command.SERR),
    ("FastB2B", Command.FAST_BACK),
    ("DisINTx", Command.INTX_DISABLE),
)
_STATUS: Final = (
    ("Cap", PciStatus.CAP_LIST),
    ("66MHz", PciStatus.MHZ_66),
    ("UDF", PciStatus.UDF),
    ("FastB2B", PciStatus.FAST_BACK),
    ("ParErr", PciStatus.PARITY),
    (">TAbort", PciStatus.SIGNALLED_TARGET_ABORT),
    ("<TAbort", PciStatus.RECEIVED_TARGET_ABORT),
    ("<MAbort", PciStatus.RECEIVED_MASTER_ABORT),
    (">SERR", PciStatus.SYSTEM_ERROR),
    ("<PERR", PciStatus.PARITY_DETECTED),
    ("INTx", PciStatus.INTERRUPT),
)
_CLASSES: Final[Mapping[int, str]] = {
    BaseClass.UNCLASSIFIED: "Unclassified device",
    BaseClass.MASS_STORAGE: "Mass storage controller",
    BaseClass.NETWORK: "Network controller",
    BaseClass.DISPLAY: "Display controller",
    BaseClass.MULTIMEDIA: "Multimedia controller",
    BaseClass.MEMORY: "Memory controller",
    BaseClass.BRIDGE: "Bridge",
    BaseClass.COMMUNICATION: "Communication controller",
    BaseClass.SYSTEM_PERIPHERAL: "Generic system peripheral",
    BaseClass.INPUT_DEVICE: "Input device controller",
    BaseClass.DOCKING_STATION: "Docking station",
    BaseClass.PROCESSOR: "Processor",
    BaseClass.SERIAL_BUS: "Serial bus controller",
    BaseClass.WIRELESS: "Wireless controller",
    BaseClass.INTELLIGENT: "Intelligent controller",
    BaseClass.SATELLITE: "Satellite communications controller",
    BaseClass.ENCRYPTION: "Encryption controller",
    BaseClass.SIGNAL_PROCESSING: "Signal processing controller",
    BaseClass.ACCELERATOR: "Processing accelerators",
    BaseClass.INSTRUMENTATION: "Non-Essential Instrumentation",
    BaseClass.UNASSIGNED: "Unassigned class",
}
_PINS: Final = {1: "A", 2: "B", 3: "C", 4: "D"}
_WIDTH: Final = 100


def render(report: Report, verbosity: int = 0) -> str:
    """Print a function: one line; with 1 its header, BARs and capabilities; with 2 all that is known."""
    lines = [_title(report, verbosity)]
    if verbosity and report.space.answers:
        lines += _header(report.space)
        lines += (f"\t{_bar(bar, report.space)}" for bar in report.space.bars)
        lines += _capabilities(report.space, verbosity)
    if verbosity > 1:
        if report.state:
            lines += _state(report.state, report.space)
        lines += _findings(report)
    return "\n".join(lines) + "\n"


def _title(report: Report, verbosity: int) -> str:
    space = report.space
    if not space.answers:
        return f"{report.slot} nothing answers here"
    head = space.header
    kind = _CLASSES.get(head.base_class, f"Class {head.base_class:02x}{head.subclass:02x}")
    title = (
        f"{report.slot} {kind}: {device_name(space)}"
        f" [{head.vendor_id:04x}:{head.device_id:04x}] (rev {head.revision_id:02x})"
    )
    counts = Counter(finding.severity for finding in report.findings)
    found = ", ".join(f"{count} {severity}{'s' * (count > 1)}" for severity, count in sorted(counts.items()))
    return f"{title}: {found}" if found and verbosity < 2 else title


def _header(space: ConfigSpace) -> Iterator[str]:
    head = space.header
    kind = head.header_type & pci.HEADER_TYPE_MASK
    if kind == HeaderType.NORMAL:
        yield f"\tSubsystem: {head.subsystem_vendor_id:04x}:{head.subsystem_id:04x}"
    else:
        yield f"\tHeader type: {kind:02x}"
    yield f"\tControl: {flags(head.command, _COMMAND)}"
    yield f"\tStatus: {flags(head.status, _STATUS)}"
    if head.interrupt_pin:
        yield f"\tInterrupt: pin {_PINS.get(head.interrupt_pin, '?')} routed to IRQ {head.interrupt_line}"
    if kind == HeaderType.NORMAL and head.rom_address:
        off = "" if head.rom_address & pci.ROM_ENABLE else " [disabled]"
        yield f"\tExpansion ROM at {head.rom_address & pci.ROM_MASK:08x}{off}"


def _bar(bar: Bar, space: ConfigSpace) -> str:
    enabled = space.header.command & (Command.IO if bar.kind == "io" else Command.MEMORY)
    address = f"{bar.address:x}" if bar.address else "<unassigned>"
    off = "" if enabled else " [disabled]"
    size = f" [size={show_size(bar.size)}]" if bar.size else ""
    if bar.kind == "io":
        return f"Region {bar.index}: I/O ports at {address}{off}{size}"
    width = "64-bit" if bar.is64 else "32-bit"
    cached = "prefetchable" if bar.prefetchable else "non-prefetchable"
    return f"Region {bar.index}: Memory at {address} ({width}, {cached}){off}{size}"


def _capabilities(space: ConfigSpace, verbosity: int) -> Iterator[str]:
    if space.truncated:
        yield f"\tCapabilities: some lie beyond the {len(space.raw)} bytes that are known"
    for cap in space.capabilities:
        yield f"\tCapabilities: [{cap.offset:02x}] {summary(cap)}"
        if verbosity > 1:
            yield from (f"\t\t{line}" for line in details(cap))
    for cap in space.extended:
        yield f"\tCapabilities: [{cap.offset:03x}] {extended_summary(cap)}"


def _state(state: VirtioState, space: ConfigSpace) -> Iterator[str]:
    """Print what the virtio registers said."""
    if state.status is not None:
        names = " ".join(status_names(state.status)) or "none: the device is reset"
        yield f"\tDevice status: {state.status:02x} ({names})"
    if state.features is not None:
        yield f"\tFeatures offered: {state.features:016x}"
        yield from (f"\t\t{line}" for line in _wrap(feature_names(state.features, space.device_type)))
    if state.queue_count is not None:
        yield f"\tQueues: {state.queue_count}"
        for queue in state.queues:
            yield f"\t\tQueue {queue.index}: size {queue.size}, {'enabled' if queue.enabled else 'not enabled'}"
        if len(state.queues) < state.queue_count:
            yield f"\t\t({state.queue_count - len(state.queues)} more are not shown)"
    if state.dmb_shm_id is not None:
        yield f"\tDMB region: the shared memory with id {state.dmb_shm_id}"
    if state.block is not None:
        yield "\tBlock device configuration:"
        yield from (f"\t\t{line}" for line in _block(state.block))


def status_names(status: int) -> Iterator[str]:
    """Name the bits of a device status; what has no name is given as a number."""
    for bit in Status:
        if status & bit:
            yield bit.name or ""
    rest = status & ~sum(Status)
    if rest:
        yield f"{rest:#04x}"


def _block(config: BlkConfig) -> Iterator[str]:
    yield f"capacity: {config.capacity} sectors ({show_size(config.capacity * SECTOR)})"
    for name, value in config.items():
        if name != BlkConfig.capacity.name and isinstance(value, int) and not name.startswith("unused"):
            yield f"{name}: {value}"


def _findings(report: Report) -> Iterator[str]:
    yield "\tFindings:" if report.findings else "\tFindings: none"
    for finding in report.findings:
        yield f"\t\t{finding.clause}: {finding.severity}: {finding.message}"
    if report.not_checked:
        yield "\tNot checked:"
        yield from (f"\t\t{what}" for what in report.not_checked)


def _wrap(words: Iterator[str]) -> Iterator[str]:
    line = ""
    for word in words:
        if len(line) + len(word) >= _WIDTH:
            yield line
            line = ""
        line = f"{line} {word}" if line else word
    if line:
        yield line
