"""The guest's end in Python: find a device, negotiate, keep everything inside its window, use it.

::

    with open_disk("/tmp/disk.sock") as disk:
        disk.pwrite(b"x" * 512, 0)
        disk.flush()
"""

from nodma.driver.blk import BlockDisk, PendingRequest, open_disk
from nodma.driver.bus import PciBus
from nodma.driver.retained_buffer import RetainedBuffer
from nodma.driver.slot import Slot, open_slot
from nodma.driver.sysfs_bus import SysfsBus
from nodma.driver.vfio_user_bus import VfioUserBus
from nodma.driver.virtio import VirtioPci

__all__ = [
    "BlockDisk",
    "PciBus",
    "PendingRequest",
    "RetainedBuffer",
    "Slot",
    "SysfsBus",
    "VfioUserBus",
    "VirtioPci",
    "open_disk",
    "open_slot",
]
