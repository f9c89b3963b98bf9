"""Several functions of one slot, driven by one process: they see each other, and share a pool if one owns one.

::

    with open_slot(["a.sock", "b.sock"]) as slot:
        a, b = (BlockDisk(slot.bus(number)) for number in slot.functions)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Self

from nodma.driver.bus import PciBus, PciPeer
from nodma.driver.pool_partition import PoolPartition, SharedRegion
from nodma.driver.region_lookup import names
from nodma.driver.sysfs_bus import SysfsBus
from nodma.driver.vfio_user_bus import Addresses, VfioUserBus
from nodma.errors import NodmaError, ProbeError, UsageError
from nodma.pci import ConfigSpace, VirtioCapability
from nodma.pci.sysfs import ROOT, slot_address
from nodma.spec.pci import CONFIG_SIZE, FUNCTIONS
from nodma.spec.virtio_pci import CfgType

DEVICE: Final = 5
"""The slot that functions of vfio-user servers are put into."""


class Slot:
    """Implements :class:`~nodma.driver.slot_peers.SlotPeers` for the functions that ``open_function`` opens.

    ``reservation`` are bytes of a shared pool that each function has for itself; by default, together half of it.
    """

    def __init__(
        self,
        open_function: Mapping[int, Callable[[Slot], PciBus]],
        *,
        reservation: int | None = None,
    ) -> None:
        """Open and enable them. Raises as a bus does for a function that cannot be had."""
        self._buses: dict[int, PciBus] = {}
        self._regions: dict[tuple[int, int, int, int], SharedRegion] = {}
        self._reservation = reservation
        try:
            for number, open_it in open_function.items():
                self._buses[number] = open_it(self)
            for bus in tuple(self._buses.values()):
                bus.enable()
        except BaseException:
            self.close()
            raise

    @property
    def functions(self) -> list[int]:
        """The numbers of the functions that are here."""
        return sorted(self._buses)

    def bus(self, function: int) -> PciBus:
        """Return a function, for a driver to own. Raises UsageError if it is not here, or was closed."""
        if function not in self._buses:
            raise UsageError(f"no function {function} in this slot: it has {self.functions}")
        return self._buses[function]

    def peer(self, device: int, function: int) -> PciPeer | None:
        """Return another function; of other slots nothing is known here."""
        bus = self._buses.get(function)
        return bus if bus and bus.place[0] == device else None

    def partition(self, user: PciPeer, owner: PciPeer, bar: int, offset: int, length: int) -> PoolPartition | None:
        """Return ``user``'s part of a region, which is mapped once; None if nobody else uses it."""
        key = (owner.place[1], bar, offset, length)
        if key not in self._regions:
            claims = {number: cap for number, bus in self._buses.items() if (cap := _claim(bus, owner.place))}
            if len(claims) == 1:
                return None
            for number, cap in claims.items():
                if (cap.bar, cap.offset_in_bar, cap.length) != (bar, offset, length):
                    raise ProbeError(
                        f"function {number} names another part of the region: nodma uses all of it or none"
                    )
            self._regions[key] = SharedRegion(owner.map_bar(bar, offset, length), [*claims], self._reservation)
        return self._regions[key].partition(user.place[1])

    def enabled(self, who: PciPeer) -> None:
        """Tell the others' servers where the function's BARs are, as a VMM does."""
        self._tell(who, lambda other, address, size: other.client.dma_map(address, size))

    def gone(self, who: PciPeer) -> None:
        """Tell the others' servers that the function's BARs are gone."""
        if self._buses.pop(who.place[1], None) is who:
            with contextlib.suppress(NodmaError):  # one that is gone, too, need not know
                self._tell(who, lambda other, address, size: other.client.dma_unmap(address, size))

    def _tell(self, who: PciPeer, tell: Callable[[VfioUserBus, int, int], None]) -> None:
        if not isinstance(who, VfioUserBus):
            return  # of a machine's own functions, nobody need be told
        for other in self._buses.values():
            if other is not who and isinstance(other, VfioUserBus):
                for address, size in who.mappable.items():
                    tell(other, address, size)

    def close(self) -> None:
        """Close the functions that no driver has closed, and unmap the shared memory."""
        for bus in tuple(self._buses.values()):
            bus.close()
        for region in self._regions.values():
            region.close()
        self._regions.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_slot(functions: Sequence[Path | str] | str, *, reservation: int | None = None) -> Slot:
    """Open functions as one slot: vfio-user sockets in the order of function numbers, or a slot of this machine.

    The latter is named by its address, as in ``0000:00:05``. Raises UsageError for what is not there, and ProbeError
    for what cannot be used.
    """
    if isinstance(functions, str):
        address = slot_address(functions)
        if address is None:
            raise UsageError(f"{functions!r} is not the address of a slot: write 0000:00:05")
        found = [number for number in range(FUNCTIONS) if (ROOT / f"{address}.{number}").is_dir()]
        return Slot({number: _opener(SysfsBus, f"{address}.{number}") for number in found}, reservation=reservation)
    if not 1 <= len(functions) <= FUNCTIONS:
        raise UsageError(f"{len(functions)} sockets given: a slot has 1 to {FUNCTIONS} functions")
    addresses = Addresses()
    opened = {number: _connector(path, (DEVICE, number), addresses) for number, path in enumerate(functions)}
    return Slot(opened, reservation=reservation)


def _connector(path: Path | str, place: tuple[int, int], addresses: Addresses) -> Callable[[Slot], PciBus]:
    return lambda slot: VfioUserBus.connect(path, place=place, slot_peers=slot, addresses=addresses)


def _opener(kind: type[SysfsBus], address: str) -> Callable[[Slot], PciBus]:
    return lambda slot: kind.open(address, slot_peers=slot)


def _claim(bus: PciBus, owner: tuple[int, int]) -> VirtioCapability | None:
    """Return the capability by which a function claims the region of ``owner`` for itself; None if it does not."""
    cap = ConfigSpace.parse(bus.read_config(0, CONFIG_SIZE), bus.bar_sizes()).virtio(CfgType.SWIOTLB)
    return cap if cap and names(bus.place, cap) == owner else None
