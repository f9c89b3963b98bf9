"""A PCI function around a device model: configuration space, BARs, MSI-X, virtio-pci registers, policy.

:class:`PciFunction` is what a wire to a VMM (``nodma.vfio_user``) serves.
"""

from nodma.pci_function.function import PciFunction, RegionSpec
from nodma.pci_function.interrupts import Interrupts
from nodma.pci_function.shared_window import PoolKeeper, RemoteKeeper, SharedPoolConfig

__all__ = ["Interrupts", "PciFunction", "PoolKeeper", "RegionSpec", "RemoteKeeper", "SharedPoolConfig"]
