"""Where a function's region really is: what its capability claims, checked before it is believed.

Configuration space is the device's word, and in a confidential guest not even that. A capability 10 of the sharing
extension (``SHARE``) names another function's BAR; it is believed only if that function is there, on the same bus, and
says itself that its region may be shared; and if what is named lies in that region, in a BAR that is memory and there.
"""

from __future__ import annotations

from dataclasses import dataclass

from nodma.driver.bus import PciBus, PciPeer
from nodma.errors import ProbeError
from nodma.pci import ConfigSpace, VirtioCapability, audit
from nodma.spec.pci import CONFIG_SIZE, DEVICES, FUNCTIONS, Command
from nodma.spec.profiles import SELF
from nodma.spec.virtio_pci import CfgType, SharedSwiotlbCap


@dataclass(frozen=True, slots=True)
class RegionPlace:
    """A region: ``length`` bytes at ``offset`` of BAR ``bar`` of ``holder``, on the bus at ``address``."""

    holder: PciPeer
    bar: int
    offset: int
    length: int
    address: int
    shared: bool = False
    """Whether it is another function's."""


def locate(bus: PciBus, space: ConfigSpace, cap: VirtioCapability) -> RegionPlace:
    """Find the region that ``cap``, of the function at ``bus``describes.

    ``space`` is audited: what the function says of itself is not checked again here. Raises ProbeError for a
    reference to another function that cannot be believed.
    """
    place = names(bus.place, cap)
    if place == bus.place:
        return _place(bus, space, cap, shared=False)
    peer = bus.peer(*place)
    who = f"function {place[1]}" if place[0] == bus.place[0] else f"device {place[0]}, function {place[1]}"
    if peer is None:
        raise ProbeError(
            f"capability 10 names the region of {who}, which is not there (SHARE); functions of one slot are opened"
            " together, by open_slot"
        )
    theirs = ConfigSpace.parse(peer.read_config(0, CONFIG_SIZE), peer.bar_sizes())
    if not theirs.answers:
        raise ProbeError(f"capability 10 names the region of {who}, where nothing answers (SHARE)")
    _check_owner(who, theirs, peer.place)
    region = theirs.virtio(CfgType.SWIOTLB)
    assert region  # checked
    inside = region.offset_in_bar <= cap.offset_in_bar and cap.end <= region.end
    if cap.bar != region.bar or not inside or not cap.length:
        raise ProbeError(
            f"capability 10 names {cap.length:#x} bytes at {cap.offset_in_bar:#x} of BAR {cap.bar} of {who},"
            f" whose region is {region.length:#x} bytes at {region.offset_in_bar:#x} of BAR {region.bar} (SHARE)"
        )
    return _place(peer, theirs, cap, shared=True)


def names(me: tuple[int, int], cap: VirtioCapability) -> tuple[int, int]:
    """Return the device and function that a capability of ``me`` names. Raises ProbeError if it cannot exist."""
    device, function = cap.owner
    if (device, function) == (SELF, SELF):
        return me
    if function not in range(FUNCTIONS) or device not in (*range(DEVICES), SELF):
        raise ProbeError(
            f"capability 10 names device {device:#x}, function {function:#x}: no such function can exist (SHARE)"
        )
    return (me[0] if device == SELF else device, function)


def _check_owner(who: str, space: ConfigSpace, place: tuple[int, int]) -> None:
    """Check that a function owns its region and lets others use it. Raises ProbeError with what is wrong."""
    found = space.virtio_all(CfgType.SWIOTLB)
    if not space.is_virtio or not found:
        raise ProbeError(f"capability 10 names the region of {who}, which has none (SHARE)")
    if not isinstance(found[0].structure, SharedSwiotlbCap):
        raise ProbeError(f"capability 10 names the region of {who}, which does not share it (SHARE)")
    if any(names(place, cap) != place for cap in found):
        raise ProbeError(f"capability 10 names the region of {who}, which names another's itself (SHARE)")
    wrong = [finding for finding in audit(space) if finding.severity == "error"]
    if wrong:
        raise ProbeError(f"{who}, whose region is to be shared, breaks {wrong[0].clause}: {wrong[0].message}")


def _place(peer: PciPeer, space: ConfigSpace, cap: VirtioCapability, *, shared: bool) -> RegionPlace:
    bar = space.bar(cap.bar)
    if bar is None or bar.kind != "memory" or (bar.size is not None and cap.end > bar.size):
        raise ProbeError(
            f"capability {cap.cfg_type} names a region in BAR {cap.bar}, which is not a memory BAR large enough for it"
        )
    if not bar.address or not space.header.command & Command.MEMORY:
        raise ProbeError(f"BAR {cap.bar}, with the region, decodes no address now: enable its function first")
    return RegionPlace(peer, cap.bar, cap.offset_in_bar, cap.length, bar.address + cap.offset_in_bar, shared)
