"""The PCI function: regions and configuration space in front of virtio, and the window behind a BAR.

What it presents, and where its registers are, is in ``nodma.pci_function.capabilities``. The client maps the
window, and no access to it takes a message.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final

from nodma.device.base import Device
from nodma.errors import UsageError
from nodma.pci_function.borrowed_pool import BorrowedPool
from nodma.pci_function.capabilities import (
    AREA,
    COMMON_AREA,
    DEVICE_AREA,
    ISR_AREA,
    NOTIFY_AREA,
    NOTIFY_MULTIPLIER,
    PBA_AREA,
    REGISTER_BAR,
    REGISTER_BAR_BYTES,
    TABLE_AREA,
    WINDOW_BAR,
    make_capabilities,
    make_header,
    own_region,
    shared_region,
)
from nodma.pci_function.common_cfg import CommonRegisters
from nodma.pci_function.config_space import ConfigSpace, MemoryBar
from nodma.pci_function.interrupts import Interrupts
from nodma.pci_function.shared_window import OwnWindow, SharedPoolConfig, SharedWindow
from nodma.pci_function.virtio import VirtioCore
from nodma.spec.pci import (
    Command,
    ExpressCapability,
    ExpressDeviceControl,
    MsixCapability,
    MsixControl,
    PciStatus,
    Type0Header,
)
from nodma.spec.profiles import MAX_POOL, MIN_POOL, SWIOTLB, Policy, Profile
from nodma.spec.vfio_user import Region
from nodma.spec.virtio_pci import VirtioPciCfgCap
from nodma.window import Window

log = logging.getLogger(__name__)

_STATUS_AT: Final = Type0Header.status.offset
_STATUS_END: Final = Type0Header.status.end
_NOWHERE: Final[tuple[int, Callable[[int, int], bytes]]] = (-1, lambda *_: b"")

MAX_VECTORS: Final = 512


@dataclass(frozen=True, slots=True)
class RegionSpec:
    """A region as a client sees it; ``mappable`` if its memory may be had by file descriptor."""

    size: int
    writable: bool = True
    mappable: bool = False


class PciFunction:
    """A virtio-pci function with ``device`` in it, and a window of ``pool`` bytes; its own, unless it is shared."""

    def __init__(
        self,
        device: Device,
        *,
        pool: int,
        profile: Profile = SWIOTLB,
        policy: Policy = Policy.REQUIRED,
        share: SharedPoolConfig | None = None,
        threads: bool = False,
        poll_ns: int = 0,
    ) -> None:
        """Raises UsageError for a pool that is not a power of two, as a BAR is, and for what the profile cannot do.

        With ``threads``, queues whose device can do that are served by threads of their own, which poll for ``poll_ns``
        nanoseconds before they wait; else, and for the others, :meth:`service` does all.
        """
        _check_options(pool, profile, policy, share)
        device.check()
        vectors = len(device.queues) + 1
        if vectors > MAX_VECTORS:
            raise UsageError(f"{len(device.queues)} queues: a function has at most {MAX_VECTORS - 1}")
        self.device = device
        self.pool = pool
        self.interrupts = Interrupts(vectors)
        self._memory = SharedWindow(share.keeper, pool, owner=share.owner is None) if share else OwnWindow(pool)
        self.core = VirtioCore(
            device, profile, policy, self.interrupts, self._memory.window, threads=threads, poll_ns=poll_ns
        )
        self.interrupts.paused_queues = self.core.paused_queues
        self.region_limit = min(pool, profile.max_region)
        """Bytes of the window that the capability describes."""
        self._sharer: BorrowedPool | None = None
        if share and share.owner is not None:
            assert isinstance(self._memory, SharedWindow)
            self._sharer = BorrowedPool(self.core, self._memory, share.owner, self.region_limit)
        self._common = CommonRegisters(self.core)
        self._present(profile, share)
        readers: dict[int, Callable[[int, int], bytes]] = {
            REGISTER_BAR: self._read_registers,
            WINDOW_BAR: self._read_window,
            Region.CONFIG: self._read_config,
        }
        self._readers = {region: (spec.size, readers[region]) for region, spec in self.regions.items()}
        self._writers: dict[int, Callable[[int, bytes], None]] = {
            REGISTER_BAR: self._write_registers,
            WINDOW_BAR: self._write_window,
            Region.CONFIG: self._write_config,
        }
        self._follow_config()

    def _present(self, profile: Profile, share: SharedPoolConfig | None) -> None:
        """Make the configuration space, and say what regions there are."""
        length = self.region_limit
        region = shared_region(profile, length, share.owner) if share else own_region(profile, length)
        capabilities = make_capabilities(self.device, profile, self.interrupts.vectors, region)
        bars = [MemoryBar(REGISTER_BAR, REGISTER_BAR_BYTES)]
        self.regions: dict[int, RegionSpec] = {Region(REGISTER_BAR): RegionSpec(REGISTER_BAR_BYTES)}
        if self._sharer is None:
            bars.append(MemoryBar(WINDOW_BAR, self.pool, is64=True, prefetchable=True))
            self.regions[Region(WINDOW_BAR)] = RegionSpec(self.pool, mappable=True)
        self._config = ConfigSpace(make_header(self.device), bars, capabilities)
        self.regions[Region.CONFIG] = RegionSpec(len(self._config.data))
        offsets = dict(zip((type(cap) for cap in capabilities), self._config.at, strict=True))
        self._msix_at = offsets[MsixCapability]
        self._express_at = offsets[ExpressCapability]
        self._cfg_window_at = offsets[VirtioPciCfgCap]
        self._cfg_data_at = self._cfg_window_at + VirtioPciCfgCap.pci_cfg_data.offset
        self._cfg_data_end = self._cfg_data_at + VirtioPciCfgCap.pci_cfg_data.size
        self._config_bytes = memoryview(self._config.data)

    @property
    def window(self) -> Window:
        """The memory that this function and its driver share: all that the function can touch."""
        return self.core.window

    def read(self, region: int, offset: int, count: int) -> bytes:
        """Read from a region. Raises UsageError if there is no such region, or the bytes lie outside it."""
        size, reader = self._readers.get(region, _NOWHERE)
        if not 0 <= offset <= offset + count <= size:
            raise _outside(region, size, offset, count)
        return reader(offset, count)

    def write(self, region: int, offset: int, data: bytes) -> None:
        """Write to a region. Raises UsageError as :meth:`read` does."""
        size, _ = self._readers.get(region, _NOWHERE)
        if not 0 <= offset <= offset + len(data) <= size:
            raise _outside(region, size, offset, len(data))
        if _pauses_nobody(region, offset):
            self._writers[region](offset, data)
            return
        with self.core.paused_queues():
            self._writers[region](offset, data)

    def write_all(self, writes: Sequence[tuple[int, int, bytes]]) -> None:
        """Write region, offset, data in turn, with one pause for all. Raises UsageError as :meth:`read` does."""
        pauses = any(not _pauses_nobody(region, offset) for region, offset, _ in writes)
        with self.core.paused_queues() if pauses else nullcontext():
            for region, offset, data in writes:
                self.write(region, offset, data)

    def paused_queues(self) -> AbstractContextManager[None]:
        """Keep the queues' threads still for a block; inside another such block this costs nothing."""
        return self.core.paused_queues()

    def tick(self) -> None:
        """Make sure that the client keeps no thread waiting. Call it about once a second."""
        self.core.tick()

    def notifiers(self, region: int) -> Sequence[tuple[int, int, int]]:
        """Return the parts of a region that may be written to by eventfd: the doorbells of queues that have threads."""
        if region != REGISTER_BAR:
            return ()
        return [
            (NOTIFY_AREA + NOTIFY_MULTIPLIER * index, NOTIFY_MULTIPLIER, fd)
            for index, fd in enumerate(self.core.doorbells)
        ]

    @property
    def wakeup_fd(self) -> int:
        """An eventfd that asks for :meth:`service`; -1 if nobody else calls for it."""
        return self.core.wakeup_fd

    @property
    def main_thread_must_interrupt(self) -> bool:
        """Whether a queue's thread may want an interrupt that it cannot give itself."""
        return self.core.main_thread_must_interrupt

    def service(self) -> bool:
        """Handle requests; return whether there are more."""
        return self.core.service()

    def finish(self, seconds: float) -> None:
        """Handle what has arrived, for at most ``seconds``: nobody is served afterwards."""
        self.core.finish(seconds)

    def reset(self) -> None:
        """Reset the function as FLR and VFIO's reset do: all but its configuration space.

        VFIO saves and restores that around a reset. A VMM relies on it: QEMU answers its guest's reads of
        the BARs from its own copy, and a guest that finds them unchanged after FLR does not write them again. So the
        window stays where it is, too (DMB-V7).
        """
        with self.core.paused_queues():
            self._common.reset()
            self.core.reset()
            self.interrupts.reset()
            self._follow_config()

    def _power_cycle(self) -> None:
        """Reset everything, as if the function had just been made."""
        self._config.reset()
        self.reset()

    def detach(self) -> None:
        """The client is gone: reset, and take a new window.

        The old one's memory may hold the client's data and may still be mapped by it; neither may reach
        whoever comes next. A window that is shared goes with its owner's client.
        """
        self._power_cycle()
        self.core.renew_doorbells()
        self.interrupts.close()
        with self.core.guarded("drain()"):  # the next client is served all the same
            self.device.drain()
        if self._sharer:
            self._sharer.clear()
        self._memory.renew()
        self.core.window = self._memory.window

    def reload(self) -> None:
        """Have the device look again at what it was made from. Raises UsageError for what it refuses."""
        refused: UsageError | None = None
        with self.core.guarded("reload()"):
            try:
                self.device.reload()
            except UsageError as error:
                refused = error
        if refused:
            raise refused

    @property
    def unfinished(self) -> str:
        """What could not be ended or made durable: a thread may hang in a system call. "" if there is nothing."""
        return "; ".join(filter(None, (self.core.unfinished, self.device.unfinished)))

    def close(self) -> None:
        """Release everything; what was acknowledged is durable, unless :attr:`unfinished` says otherwise."""
        self._power_cycle()
        self.interrupts.close()
        self.core.close()
        with self.core.guarded("close()"):
            self.device.close()
        self._memory.close()

    def describe(self) -> str:
        """Return what the device says it is, in a line; its class if it fails to."""
        with self.core.guarded("describe()"):
            return " ".join(str(self.device.describe()).split())
        return type(self.device).__name__

    def statistics(self) -> dict[str, int]:
        """Return what the device counted; nothing if it fails to."""
        with self.core.guarded("statistics()"):
            return {str(name): int(count) for name, count in self.device.statistics().items()}
        return {}

    def dma_mapped(self, address: int, size: int) -> None:
        """Take note of memory that the client reports without a descriptor: it may be another function's BAR."""
        if self._sharer:
            with self.core.paused_queues():
                self._sharer.mapped(address, size)

    def dma_unmapped(self, regions: Mapping[int, int]) -> None:
        """Take note that regions are gone, size by address."""
        if self._sharer:
            with self.core.paused_queues():
                for address, size in regions.items():
                    self._sharer.unmapped(address, size)

    # Registers

    def _read_registers(self, offset: int, count: int) -> bytes:
        area = offset & ~(AREA - 1)
        inside = offset - area
        if area == COMMON_AREA:
            return self._common.read(inside, count)
        if area == ISR_AREA and inside == 0 and count:
            return bytes([self.core.take_isr()]).ljust(count, b"\0")
        if area == DEVICE_AREA:
            with self.core.guarded("config"):
                return _slice(bytes(self.device.config), inside, count)
            return bytes(count)
        if area in (TABLE_AREA, TABLE_AREA + AREA):
            return _slice(self.interrupts.table, offset - TABLE_AREA, count)
        if area == PBA_AREA:
            return _slice(self.interrupts.pending_bits(), inside, count)
        return bytes(count)

    def _write_registers(self, offset: int, data: bytes) -> None:
        area = offset & ~(AREA - 1)
        inside = offset - area
        if area == NOTIFY_AREA:
            self.core.notify(inside // NOTIFY_MULTIPLIER)
        elif area == COMMON_AREA:
            self._common.write(inside, data)
        elif area == DEVICE_AREA:
            with self.core.guarded("config_written()"):
                self.device.config_written(inside, data)
        elif area in (TABLE_AREA, TABLE_AREA + AREA):
            room = len(self.interrupts.table) - (offset - TABLE_AREA)
            if room > 0:
                self.interrupts.write_table(offset - TABLE_AREA, data[:room])

    def _read_window(self, offset: int, count: int) -> bytes:
        return self.core.window.view(offset, count).tobytes()

    def _write_window(self, offset: int, data: bytes) -> None:
        self.core.window.view(offset, len(data))[:] = data

    # Configuration space

    def _read_config(self, offset: int, count: int) -> bytes:
        if offset < _STATUS_END and offset + count > _STATUS_AT:
            header = self._config.header
            interrupt = self.core.isr and not self.interrupts.msix_on
            header.status = header.status & ~int(PciStatus.INTERRUPT) | (PciStatus.INTERRUPT if interrupt else 0)
        if offset < self._cfg_data_end and self._cfg_data_at < offset + count:
            self._cfg_window_access(None)
        return self._config_bytes[offset : offset + count].tobytes()

    def _write_config(self, offset: int, data: bytes) -> None:
        self._config.write(offset, data)
        control = ExpressCapability(self._config.data, self._express_at)
        if control.device_control & ExpressDeviceControl.INITIATE_FLR:
            log.info("function level reset")
            control.device_control &= ~int(ExpressDeviceControl.INITIATE_FLR)  # it always reads as 0
            self.reset()
        self._follow_config()
        if self._touches_cfg_data(offset, len(data)):
            self._cfg_window_access(bytes(self._config.data[self._cfg_data_at : self._cfg_data_end]))

    def _follow_config(self) -> None:
        """Act on what configuration space now says: where the window is, and how to interrupt."""
        if self._sharer is None:
            address = self._config.bar_address(WINDOW_BAR)
            self.core.rebase(self.core.profile.address_range(address, self.region_limit))
        control = MsixCapability(self._config.data, self._msix_at).control
        self.interrupts.set_msix(
            on=bool(control & MsixControl.ENABLE), function_mask=bool(control & MsixControl.FUNCTION_MASK)
        )
        self.interrupts.set_intx_disable(bool(self._config.command & Command.INTX_DISABLE))

    def _touches_cfg_data(self, offset: int, count: int) -> bool:
        return offset < self._cfg_data_end and self._cfg_data_at < offset + count

    def _cfg_window_access(self, data: bytes | None) -> None:
        """Access a BAR through the PCI configuration access capability (4.1.4.9): write, or read if None.

        What the driver must not address there is ignored, and reads as zeros.
        """
        cap = VirtioPciCfgCap(self._config.data, self._cfg_window_at)
        bar, offset, length = cap.bar, cap.offset, cap.length
        spec = self.regions.get(bar) if bar in (REGISTER_BAR, WINDOW_BAR) else None
        good = spec is not None and length in (1, 2, 4) and offset % length == 0 and offset + length <= spec.size
        if data is None:
            cap.pci_cfg_data = self.read(bar, offset, length).ljust(4, b"\0") if good else bytes(4)
        elif good:
            self.write(bar, offset, data[:length])


def _check_options(pool: int, profile: Profile, policy: Policy, share: SharedPoolConfig | None) -> None:
    """Raise UsageError for options that are not available, or not together."""
    if pool & (pool - 1) or not MIN_POOL <= pool <= MAX_POOL:
        raise UsageError(
            f"a pool of {pool} bytes: it must be a power of two"
            f" from {MIN_POOL >> 10}K to {MAX_POOL >> 30}G, as a PCI BAR is"
        )
    if policy not in profile.policies:
        raise UsageError(
            f"policy {policy} is not available with profile {profile.name}: addresses from a driver that does not"
            f" know {profile.feature.name} could pass for offsets ({profile.clauses.refuse})"
        )
    if share and not profile.shareable:
        raise UsageError(
            f"the profile {profile.name} cannot share a pool: its region is one per device ({profile.clauses.region})"
        )


def _pauses_nobody(region: int, offset: int) -> bool:
    """Return whether a write concerns nothing that the queues' threads look at: the window, or a notification."""
    return region == WINDOW_BAR or (region == REGISTER_BAR and offset & ~(AREA - 1) == NOTIFY_AREA)


def _slice(structure: bytes | bytearray, offset: int, count: int) -> bytes:
    """Read ``count`` bytes of a structure; after it there are zeros."""
    return bytes(structure[offset : offset + count]).ljust(count, b"\0")


def _outside(region: int, size: int, offset: int, count: int) -> UsageError:
    return UsageError(f"{count} bytes at {offset:#x} do not lie in region {region} of {max(0, size):#x} bytes")
