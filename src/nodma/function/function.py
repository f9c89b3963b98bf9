"""The PCI function: regions and configuration space in front of virtio, and the window behind a BAR.

BAR 0 has the registers, 32 KiB::

    0x0000  common configuration        0x3000  notifications, 4 bytes a queue
    0x1000  ISR status                  0x4000  MSI-X table
    0x2000  device configuration        0x6000  MSI-X pending bits

BAR 2, 64-bit and prefetchable, is the window: the client maps it, and no access to it takes a message.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from nodma.device.base import Device
from nodma.errors import UsageError
from nodma.function.common_cfg import CommonRegisters
from nodma.function.config_space import ConfigSpace, MemoryBar
from nodma.function.interrupts import Interrupts
from nodma.function.virtio import Reach, VirtioCore
from nodma.spec.pci import (
    EXPRESS_TYPE_SHIFT,
    Capability,
    CapId,
    Command,
    ExpressCapability,
    ExpressDeviceCap,
    ExpressDeviceControl,
    ExpressType,
    MsixCapability,
    MsixControl,
    PciStatus,
    Type0Header,
)
from nodma.spec.profiles import MAX_POOL, MAX_REGION, MIN_POOL, SWIOTLB, Policy, Profile
from nodma.spec.vfio_user import Region
from nodma.spec.virtio_pci import (
    MODERN_DEVICE_BASE,
    VIRTIO_VENDOR,
    CfgType,
    CommonCfg,
    VirtioPciCap,
    VirtioPciCfgCap,
    VirtioPciNotifyCap,
)
from nodma.window import Window

log = logging.getLogger(__name__)

REGISTER_BAR: Final = 0
WINDOW_BAR: Final = 2
MAX_VECTORS: Final = 512
NOTIFY_MULTIPLIER: Final = 4

_AREA: Final = 0x1000
_COMMON, _ISR, _DEVICE, _NOTIFY, _TABLE, _PBA = (n * _AREA for n in (0, 1, 2, 3, 4, 6))
_REGISTER_BAR_BYTES: Final = 8 * _AREA
_EXPRESS_VERSION: Final = 2


@dataclass(frozen=True, slots=True)
class RegionSpec:
    """A region as a client sees it; ``mappable`` if its memory may be had by file descriptor."""

    size: int
    writable: bool = True
    mappable: bool = False


class PciFunction:
    """A virtio-pci function with ``device`` in it and a window of ``pool`` bytes of its own."""

    def __init__(
        self,
        device: Device,
        *,
        pool: int,
        profile: Profile = SWIOTLB,
        policy: Policy = Policy.REQUIRED,
        threads: bool = False,
        poll_ns: int = 0,
    ) -> None:
        """Raises UsageError if ``pool`` is no power of two that a window can have.

        With ``threads``, queues whose device can do that are served by threads of their own, which poll for ``poll_ns``
        nanoseconds before they wait; else, and for the others, :meth:`service` does all.
        """
        if pool & (pool - 1) or not MIN_POOL <= pool <= MAX_POOL:
            raise UsageError(
                f"a pool of {pool} bytes: it must be a power of two"
                f" from {MIN_POOL >> 10}K to {MAX_POOL >> 30}G, as a PCI BAR is"
            )
        vectors = len(device.queues) + 1
        if vectors > MAX_VECTORS:
            raise UsageError(f"{len(device.queues)} queues: a function has at most {MAX_VECTORS - 1}")
        self.device = device
        self.pool = pool
        self.interrupts = Interrupts(vectors)
        self.core = VirtioCore(
            device, profile, policy, self.interrupts, Window.create(pool), threads=threads, poll_ns=poll_ns
        )
        self.interrupts.quiet = self.core.quiet
        self.region_limit = min(pool, MAX_REGION)
        """Bytes of the window that the capability tells of."""
        self._common = CommonRegisters(self.core)
        self._capabilities = self._make_capabilities()
        self._config = ConfigSpace(
            self._make_header(),
            (
                MemoryBar(REGISTER_BAR, _REGISTER_BAR_BYTES),
                MemoryBar(WINDOW_BAR, pool, is64=True, prefetchable=True),
            ),
            self._capabilities,
        )
        offsets = dict(zip((type(cap) for cap in self._capabilities), self._config.at, strict=True))
        self._msix_at = offsets[MsixCapability]
        self._express_at = offsets[ExpressCapability]
        self._cfg_window_at = offsets[VirtioPciCfgCap]
        self.regions: dict[int, RegionSpec] = {
            Region(REGISTER_BAR): RegionSpec(_REGISTER_BAR_BYTES),
            Region(WINDOW_BAR): RegionSpec(pool, mappable=True),
            Region.CONFIG: RegionSpec(len(self._config.data)),
        }
        self._sizes = {region: spec.size for region, spec in self.regions.items()}
        self._readers: dict[int, Callable[[int, int], bytes]] = {
            REGISTER_BAR: self._read_registers,
            WINDOW_BAR: self._read_window,
            Region.CONFIG: self._read_config,
        }
        self._writers: dict[int, Callable[[int, bytes], None]] = {
            REGISTER_BAR: self._write_registers,
            WINDOW_BAR: self._write_window,
            Region.CONFIG: self._write_config,
        }

    def _make_header(self) -> Type0Header:
        identity = MODERN_DEVICE_BASE + self.device.device_type
        base_class, subclass = self.device.pci_class
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

    def _make_capabilities(self) -> list[Capability]:
        def virtio(kind: type[VirtioPciCap], cfg_type: CfgType, bar: int, offset: int, length: int, **more: int) -> Any:
            return kind.new(
                cap_id=CapId.VENDOR,
                cap_len=kind.size,
                cfg_type=cfg_type,
                bar=bar,
                offset=offset,
                length=length,
                **more,
            )

        queues = len(self.device.queues)
        express = ExpressCapability.new(
            cap_id=CapId.EXPRESS,
            flags=_EXPRESS_VERSION | ExpressType.ENDPOINT << EXPRESS_TYPE_SHIFT,
            device_caps=ExpressDeviceCap.ROLE_BASED_ERROR | ExpressDeviceCap.FLR,
        )
        msix = MsixCapability.new(
            cap_id=CapId.MSIX,
            control=self.interrupts.vectors - 1,
            table=_TABLE | REGISTER_BAR,
            pba=_PBA | REGISTER_BAR,
        )
        made = [
            express,
            msix,
            virtio(VirtioPciCap, CfgType.COMMON, REGISTER_BAR, _COMMON, CommonCfg.size),
            virtio(
                VirtioPciNotifyCap,
                CfgType.NOTIFY,
                REGISTER_BAR,
                _NOTIFY,
                NOTIFY_MULTIPLIER * queues,
                notify_off_multiplier=NOTIFY_MULTIPLIER,
            ),
            virtio(VirtioPciCap, CfgType.ISR, REGISTER_BAR, _ISR, 1),
        ]
        if self.device.config.size:
            made.append(virtio(VirtioPciCap, CfgType.DEVICE, REGISTER_BAR, _DEVICE, self.device.config.size))
        made.append(virtio(VirtioPciCfgCap, CfgType.PCI, 0, 0, 0))
        made.append(virtio(VirtioPciCap, self.core.profile.cfg_type, WINDOW_BAR, 0, self.region_limit))
        return made

    @property
    def window(self) -> Window:
        """The memory that this function and its driver share: all that the function can touch."""
        return self.core.window

    def read(self, region: int, offset: int, count: int) -> bytes:
        """Read from a region. Raises UsageError if there is no such region, or the bytes lie outside it."""
        if not 0 <= offset <= offset + count <= self._sizes.get(region, -1):
            raise self._outside(region, offset, count)
        return self._readers[region](offset, count)

    def write(self, region: int, offset: int, data: bytes) -> None:
        """Write to a region. Raises UsageError as :meth:`read` does."""
        if not 0 <= offset <= offset + len(data) <= self._sizes.get(region, -1):
            raise self._outside(region, offset, len(data))
        if region == WINDOW_BAR or (region == REGISTER_BAR and offset & ~(_AREA - 1) == _NOTIFY):
            self._writers[region](offset, data)
            return
        with self.core.quiet():
            self._writers[region](offset, data)

    def _outside(self, region: int, offset: int, count: int) -> UsageError:
        size = self._sizes.get(region, 0)
        return UsageError(f"{count} bytes at {offset:#x} do not lie in region {region} of {size:#x} bytes")

    def notifiers(self, region: int) -> Sequence[tuple[int, int, int]]:
        """Give the parts of a region that may be written to by eventfd: the doorbells of queues that have threads."""
        if region != REGISTER_BAR:
            return ()
        return [
            (_NOTIFY + NOTIFY_MULTIPLIER * index, NOTIFY_MULTIPLIER, fd) for index, fd in enumerate(self.core.doorbells)
        ]

    @property
    def attention(self) -> int:
        """An eventfd that asks for :meth:`service`; -1 if nobody else calls for it."""
        return self.core.attention

    def service(self) -> bool:
        """Handle requests; tell whether there are more."""
        return self.core.service()

    def finish(self, seconds: float) -> None:
        """Handle what is there, for so many seconds at most: nobody will be served any more."""
        self.core.finish(seconds)

    def reset(self) -> None:
        """Reset the function as FLR and VFIO's reset do: all but its configuration space.

        VFIO saves and restores that around a reset. A VMM relies on it: QEMU answers its guest's reads of
        the BARs from its own copy, and a guest that finds them unchanged after FLR does not write them again.
        """
        with self.core.quiet():
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
        whoever comes next.
        """
        self._power_cycle()
        self.interrupts.close()
        try:
            self.device.drain()
        except Exception:  # the next client is served all the same
            log.exception("what the client wrote could not be made durable")
        self.core.window.close()
        self.core.window = Window.create(self.pool)

    def close(self) -> None:
        """Give up everything; what was acknowledged is durable."""
        self._power_cycle()
        self.interrupts.close()
        self.core.close()
        self.device.close()
        self.core.window.close()

    # Registers

    def _read_registers(self, offset: int, count: int) -> bytes:
        area = offset & ~(_AREA - 1)
        inside = offset - area
        if area == _COMMON:
            return self._common.read(inside, count)
        if area == _ISR and inside == 0 and count:
            return bytes([self.core.take_isr()]).ljust(count, b"\0")
        if area == _DEVICE:
            return _slice(bytes(self.device.config), inside, count)
        if area in (_TABLE, _TABLE + _AREA):
            return _slice(self.interrupts.table, offset - _TABLE, count)
        if area == _PBA:
            return _slice(self.interrupts.pending_bits(), inside, count)
        return bytes(count)

    def _write_registers(self, offset: int, data: bytes) -> None:
        area = offset & ~(_AREA - 1)
        inside = offset - area
        if area == _NOTIFY:
            self.core.notify(inside // NOTIFY_MULTIPLIER)
        elif area == _COMMON:
            self._common.write(inside, data)
        elif area == _DEVICE:
            self.device.config_written(inside, data)
        elif area in (_TABLE, _TABLE + _AREA):
            room = len(self.interrupts.table) - (offset - _TABLE)
            if room > 0:
                self.interrupts.write_table(offset - _TABLE, data[:room])

    def _read_window(self, offset: int, count: int) -> bytes:
        return self.core.window.view(offset, count).tobytes()

    def _write_window(self, offset: int, data: bytes) -> None:
        self.core.window.view(offset, len(data))[:] = data

    # Configuration space

    def _read_config(self, offset: int, count: int) -> bytes:
        if self._touches_cfg_data(offset, count):
            self._cfg_window_access(None)
        header = self._config.header
        interrupt = self.core.isr and not self.interrupts.msix_on
        header.status = header.status & ~int(PciStatus.INTERRUPT) | (PciStatus.INTERRUPT if interrupt else 0)
        return self._config.read(offset, count)

    def _write_config(self, offset: int, data: bytes) -> None:
        self._config.write(offset, data)
        control = ExpressCapability(self._config.data, self._express_at)
        if control.device_control & ExpressDeviceControl.INITIATE_FLR:
            log.info("function level reset")
            control.device_control &= ~int(ExpressDeviceControl.INITIATE_FLR)  # it always reads as 0
            self.reset()
        self._follow_config()
        if self._touches_cfg_data(offset, len(data)):
            at = self._cfg_window_at + VirtioPciCfgCap.pci_cfg_data.offset
            self._cfg_window_access(bytes(self._config.data[at : at + VirtioPciCfgCap.pci_cfg_data.size]))

    def _follow_config(self) -> None:
        """Act on what configuration space now says: where the window is, and how to interrupt."""
        address = self._config.bar_address(WINDOW_BAR)
        self.core.move(None if address is None else Reach(address, 0, self.region_limit))
        control = MsixCapability(self._config.data, self._msix_at).control
        self.interrupts.set_msix(
            on=bool(control & MsixControl.ENABLE), function_mask=bool(control & MsixControl.FUNCTION_MASK)
        )
        self.interrupts.set_intx_disable(bool(self._config.command & Command.INTX_DISABLE))

    def _touches_cfg_data(self, offset: int, count: int) -> bool:
        begin = self._cfg_window_at + VirtioPciCfgCap.pci_cfg_data.offset
        return offset < begin + VirtioPciCfgCap.pci_cfg_data.size and begin < offset + count

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


def _slice(structure: bytes | bytearray, offset: int, count: int) -> bytes:
    """Read ``count`` bytes of a structure; behind it there are zeros."""
    return bytes(structure[offset : offset + count]).ljust(count, b"\0")
