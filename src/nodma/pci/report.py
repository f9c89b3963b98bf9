"""What is known of a PCI function: its configuration space, and what its virtio registers say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nodma.pci.audit import Finding, audit, not_checked
from nodma.pci.config import ConfigSpace
from nodma.spec.virtio import FEATURE_BITS, DeviceType, Feature
from nodma.spec.virtio_blk import BlkConfig, BlkFeature


@dataclass(frozen=True, slots=True)
class QueueState:
    """A virtqueue: ``size`` in entries, 0 if the device has none of that number."""

    index: int
    size: int
    enabled: bool


@dataclass(slots=True)
class VirtioState:
    """What the registers said; None is what could not be read."""

    features: int | None = None
    """The features that the device offers, as a mask."""
    status: int | None = None
    queue_count: int | None = None
    queues: tuple[QueueState, ...] = ()
    """The queues that were looked at: the first ones, if there are very many."""
    dmb_shm_id: int | None = None
    """The id of VIRTIO_F_DMB's region, where that is offered."""
    block: BlkConfig | None = None
    """The device configuration of a block device."""


@dataclass(frozen=True, slots=True)
class Report:
    """A function at ``slot``, as lspci names places. ``problems`` tell what could not be learned, and why."""

    slot: str
    space: ConfigSpace
    state: VirtioState | None = None
    problems: tuple[str, ...] = ()

    @property
    def findings(self) -> list[Finding]:
        """What breaks which clause."""
        state = self.state or VirtioState()
        return audit(self.space, state.features, state.dmb_shm_id)

    @property
    def not_checked(self) -> list[str]:
        """What could not be held against the clauses, and why."""
        missing = not_checked(self.space)
        if self.space.is_virtio and (self.state is None or self.state.features is None):
            missing.append("the features that it offers: only a running server tells")
        return missing


def feature_names(features: int, device_type: int | None) -> Iterator[str]:
    """Name the bits of a feature mask, from the lowest; a bit without a name is given as its number."""
    names: dict[int, str] = {bit.value: bit.name for bit in Feature}
    if device_type == DeviceType.BLOCK:
        names |= {bit.value: bit.name for bit in BlkFeature}
    for bit in range(FEATURE_BITS):
        if features >> bit & 1:
            yield names.get(bit, f"bit{bit}")


def device_name(space: ConfigSpace) -> str:
    """Return what kind of device this is."""
    kind = space.device_type
    if kind is None:
        return "Device"
    known = {member.value: member.name for member in DeviceType}
    if kind not in known:
        return f"Virtio device of type {kind}"
    return f"Virtio {known[kind].lower().replace('_', ' ')} device"
