"""A PCI function around a device model: configuration space, BARs, MSI-X, virtio-pci registers, policy.

:class:`PciFunction` is what a wire to a VMM (``nodma.vfio_user``) serves.
"""

from nodma.function.function import PciFunction, RegionSpec
from nodma.function.interrupts import Interrupts
from nodma.function.shared_window import PoolKeeper, RemoteKeeper, Share

__all__ = ["Interrupts", "PciFunction", "PoolKeeper", "RegionSpec", "RemoteKeeper", "Share"]
