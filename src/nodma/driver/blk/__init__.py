"""A block device for Python callers, over a virtio-pci device with restricted DMA."""

from nodma.driver.blk.disk import BlockDisk, open_disk
from nodma.driver.blk.requests import PendingRequest

__all__ = ["BlockDisk", "PendingRequest", "open_disk"]
