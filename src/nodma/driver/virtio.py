"""Drive a virtio-pci device with restricted DMA: probe, negotiate, lay queues out in its window."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from typing import Final, Self, TypeVar

from nodma.driver.bus import PciBus
from nodma.driver.region_lookup import locate
from nodma.errors import DeviceFailed, NegotiationError, NodmaError, ProbeError
from nodma.pci import ConfigSpace, VirtioCapability, audit
from nodma.ring import DriverRing, RingLayout
from nodma.spec.dmb import SHM_ID_MASK, DmbCommonCfg
from nodma.spec.layout import Field, Layout
from nodma.spec.profiles import PREFERENCE, Profile
from nodma.spec.virtio import DESC_ALIGN, Descriptor, Feature, Status
from nodma.spec.virtio_pci import NO_VECTOR, VIRTIO_VENDOR, CfgType, CommonCfg, SharedSwiotlbCap
from nodma.window import BouncePool, Window

_RESET_SECONDS: Final = 5.0
_CONFIG_SECONDS: Final = 5.0
_TRANSPORT: Final = (
    Feature.VERSION_1.mask | Feature.ACCESS_PLATFORM.mask | Feature.EVENT_IDX.mask | Feature.INDIRECT_DESC.mask
)
_CACHE_LINE: Final = 64

L = TypeVar("L", bound=Layout)


class VirtioPci:
    """A virtio-pci function whose driver keeps to a region: the function's own, or one that it shares.

    ``window`` is that region, mapped. What is in it before the pool, rings and the like, is taken from the start by
    :meth:`reserve`, once, before the device is started; the rest is free for a bounce pool.
    """

    def __init__(self, bus: PciBus, profile: Profile | None = None) -> None:
        """Probe. Owns ``bus`` from here on. Without a ``profile``, the one preferred of those that the device presents.

        Raises ProbeError if this is not a virtio device with the profile's region, or one whose capabilities
        claim what is not so: they are checked before anything is believed.
        """
        self.bus = bus
        self._window: Window | None = None
        self._own_window = False
        self.common: BouncePool | None = None
        """Of a shared region, the part that is for all; None if the region is this function's alone."""
        try:
            bus.enable()
            self.space = ConfigSpace.parse(bus.read_config(0, 256), bus.bar_sizes())
            if self.space.header.vendor_id != VIRTIO_VENDOR:
                raise ProbeError(
                    f"not a virtio device: vendor {self.space.header.vendor_id:#06x}, expected {VIRTIO_VENDOR:#06x}"
                )
            self._common = self._require(CfgType.COMMON)
            self._notify = self._require(CfgType.NOTIFY)
            self.reset()
            self.offered = self._features()
            self.profile, self.region = self._choose(PREFERENCE if profile is None else (profile,))
            self.place = locate(bus, self.space, self.region)
            self._settle_in()
        except BaseException:
            self.close()
            raise
        self.accepted = 0
        self.queues = self._get(CommonCfg.num_queues)

    def _choose(self, profiles: Iterable[Profile]) -> tuple[Profile, VirtioCapability]:
        """Check what the device says of itself; find the first profile whose region it presents."""
        shm_id = self._shm_id()
        wrong = [finding for finding in audit(self.space, self.offered, shm_id) if finding.severity == "error"]
        if wrong:
            raise ProbeError(f"the device breaks {wrong[0].clause}: {wrong[0].message}")
        names = []
        for profile in profiles:
            for cap in self.space.virtio_all(profile.cfg_type):
                if profile.shm_id is None or cap.id == shm_id:
                    return profile, cap
            names.append(f"{profile.name} (capability {profile.cfg_type})")
        raise ProbeError(f"the device presents no region of the profile {' or '.join(names)}")

    def _shm_id(self) -> int | None:
        """Read which shared memory is VIRTIO_F_DMB's region; None if that is not offered."""
        field = DmbCommonCfg.dmb_shm_id
        if not self.offered & Feature.DMB.mask or self._common.length < field.end:
            return None
        return self._get(field) & SHM_ID_MASK

    def _settle_in(self) -> None:
        """Map the region, or find the part of a shared one that is for this function."""
        place = self.place
        address_range = self.profile.address_range(place.address, place.length)
        assert address_range is not None  # it has an address
        self._base, self._free, self.end = address_range.base, address_range.first, address_range.limit
        shareable = isinstance(self.region.structure, SharedSwiotlbCap)
        partition = self.bus.partition(place.holder, place.bar, place.offset, place.length) if shareable else None
        if partition:
            self._window, self._free, self.end = partition.window, partition.begin, partition.end
            self.common = partition.common
        elif place.shared:
            raise ProbeError(
                "the device has its region in another function's BAR: open its functions together (open_slot)"
            )
        else:
            self._window = place.holder.map_bar(place.bar, place.offset, place.length)
            self._own_window = True

    def _require(self, cfg_type: CfgType) -> VirtioCapability:
        found = self.space.virtio(cfg_type)
        if found is None:
            raise ProbeError(f"the device presents no capability {cfg_type} ({cfg_type.name})")
        return found

    @property
    def window(self) -> Window:
        """The region, mapped."""
        assert self._window is not None  # or the constructor had raised
        return self._window

    # Registers

    def _get(self, field: Field[int]) -> int:
        at = self._common.offset_in_bar + field.offset
        return int.from_bytes(self.bus.read_bar(self._common.bar, at, field.size), "little")

    def _set(self, field: Field[int], value: int) -> None:
        """Write a register; one of 64 bits in two halves, as 4.1.3.1 has it."""
        for part in range(0, field.size, 4):
            width = min(4, field.size - part)
            data = (value >> 8 * part & (1 << 8 * width) - 1).to_bytes(width, "little")
            self.bus.write_bar(self._common.bar, self._common.offset_in_bar + field.offset + part, data)

    def _features(self) -> int:
        offered = 0
        for word in (0, 1):
            self._set(CommonCfg.device_feature_select, word)
            offered |= self._get(CommonCfg.device_feature) << 32 * word
        return offered

    @property
    def status(self) -> Status:
        """The device status."""
        return Status(self._get(CommonCfg.device_status))

    def check(self) -> None:
        """Raise DeviceFailed if the device asks to be reset, or the pool that it shares is its owner's no more."""
        holder = self.place.holder
        if self.place.shared and self.bus.peer(*holder.place) is not holder:
            raise DeviceFailed(
                f"function {holder.place[1]}, which owns the pool, was closed: requests in its pool will never complete"
            )
        if self.status & Status.DEVICE_NEEDS_RESET:
            raise DeviceFailed("the device set DEVICE_NEEDS_RESET: its log says why; reset it to go on")

    def device_config(self, layout: type[L]) -> L:
        """Read the device configuration, consistently (2.5.1). Raises DeviceFailed if it never holds still."""
        found = self._require(CfgType.DEVICE)
        count = min(layout.size, found.length)
        end = time.monotonic() + _CONFIG_SECONDS
        while True:
            generation = self._get(CommonCfg.config_generation)
            raw = self.bus.read_bar(found.bar, found.offset_in_bar, count)
            if self._get(CommonCfg.config_generation) == generation:
                return layout(raw.ljust(layout.size, b"\0"))
            if time.monotonic() > end:
                raise DeviceFailed(f"the device's configuration changed at every reading for {_CONFIG_SECONDS:g} s")

    def write_device_config(self, field: Field[int], value: int) -> None:
        """Write a field of the device configuration, which its layout says is writable (2.5)."""
        found = self._require(CfgType.DEVICE)
        self.bus.write_bar(found.bar, found.offset_in_bar + field.offset, value.to_bytes(field.size, "little"))

    # Initialization (3.1)

    def reset(self) -> None:
        """Reset the device, and wait until it is. Raises DeviceFailed if it never is."""
        self._set(CommonCfg.device_status, 0)
        end = time.monotonic() + _RESET_SECONDS
        while self._get(CommonCfg.device_status):
            if time.monotonic() > end:
                raise DeviceFailed(f"the device was not reset within {_RESET_SECONDS:g} s")

    def negotiate(self, wanted: int) -> int:
        """Accept what is offered of ``wanted``, and all that the transport and the profile need (SW-D1).

        Gives the features accepted. Raises NegotiationError if the device refuses them.
        """
        if not self.offered & Feature.VERSION_1.mask:
            raise NegotiationError("the device does not offer VERSION_1: it is a legacy device")
        self._set(CommonCfg.device_status, Status.ACKNOWLEDGE)
        self._set(CommonCfg.device_status, Status.ACKNOWLEDGE | Status.DRIVER)
        self.accepted = self.offered & (wanted | _TRANSPORT | self.profile.feature.mask | self.profile.beside)
        for word in (0, 1):
            self._set(CommonCfg.driver_feature_select, word)
            self._set(CommonCfg.driver_feature, self.accepted >> 32 * word & 0xFFFFFFFF)
        status = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK
        self._set(CommonCfg.device_status, status)
        if not self.status & Status.FEATURES_OK:
            self._set(CommonCfg.device_status, status | Status.FAILED)
            raise NegotiationError(f"the device refuses the features {self.accepted:#x} (offered {self.offered:#x})")
        return self.accepted

    def reserve(self, length: int, align: int = _CACHE_LINE) -> int:
        """Take ``length`` bytes of the region for good; returns their offset in the window (SW-D2)."""
        at = -(-self._free // align) * align
        if at + length > self.end:
            raise ProbeError(f"the region is too small for the queues: {self.end - self._free} bytes are left")
        self._free = at + length
        return at

    def queue_limit(self, index: int) -> int:
        """Entries that a queue may have at most."""
        self._set(CommonCfg.queue_select, index)
        return self._get(CommonCfg.queue_size)

    def set_up_queue(self, index: int, size: int, *, vector: int = NO_VECTOR, parts: int = 0) -> DriverRing:
        """Lay a queue of ``size`` entries out in the window, and enable it.

        With ``parts``, and if the device takes them, requests of up to that many go through indirect
        tables. Raises ProbeError if the device has no such queue.
        """
        if self.queue_limit(index) < size:
            raise ProbeError(f"queue {index} takes fewer than {size} entries")
        parts = parts if self.accepted & Feature.INDIRECT_DESC.mask else 0
        at = self.reserve(RingLayout.packed_at(0, size).end, DESC_ALIGN)
        layout = RingLayout.packed_at(at, size)
        ring = DriverRing(
            self.window,
            layout,
            base=self._base,
            event_idx=bool(self.accepted & Feature.EVENT_IDX.mask),
            tables=self.reserve(Descriptor.size * parts * size, DESC_ALIGN),
            table_entries=parts,
        )
        self._set(CommonCfg.queue_size, size)
        self._set(CommonCfg.queue_msix_vector, vector)
        for field, offset in (
            (CommonCfg.queue_desc, layout.desc),
            (CommonCfg.queue_driver, layout.avail),
            (CommonCfg.queue_device, layout.used),
        ):
            self._set(field, self._base + offset)
        if self._get(CommonCfg.queue_msix_vector) != vector:
            raise ProbeError(f"the device cannot map queue {index} to vector {vector}")
        self._set(CommonCfg.queue_enable, 1)
        return ring

    def set_config_vector(self, vector: int) -> None:
        """Let configuration changes, DEVICE_NEEDS_RESET among them, signal an MSI-X vector."""
        self._set(CommonCfg.config_msix_vector, vector)

    def start(self) -> None:
        """Set DRIVER_OK. Raises DeviceFailed if the device wants none of it."""
        status = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK
        self._set(CommonCfg.device_status, status)
        self.check()

    def notifier(self, index: int) -> tuple[int, int, bytes]:
        """Return BAR, offset and data of the register write that notifies queue ``index`` (4.1.4.4)."""
        self._set(CommonCfg.queue_select, index)
        offset = self._notify.offset_in_bar + self._get(CommonCfg.queue_notify_off) * self._notify.notify_off_multiplier
        return self._notify.bar, offset, index.to_bytes(2, "little")

    @property
    def free(self) -> tuple[int, int]:
        """Start and length, in the window, of what of the region is not reserved."""
        return self._free, self.end - self._free

    def close(self) -> None:
        """Reset the device if it is still there, and close it."""
        if self._window is not None:
            with contextlib.suppress(NodmaError):  # gone, or beyond reset: it is closed all the same
                self.reset()
            if self._own_window:
                self._window.close()
        self.bus.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
